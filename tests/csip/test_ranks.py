"""Two processes with a share of a batch each find what one process finds for the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csip import ranks
from csip.models.reid import GlobalBatchNorm1d
from csip.training import losses

SCRIPT = Path(__file__).with_name("two_ranks.py")
ROOT = SCRIPT.parents[2]
FIRST = 3  # rows of the first of two processes; the second has five
SHAPES = [(2, 3), (5,), (4,), (3, 3), (1,)]


def torchrun(*words, folder, **environment):
    """Run a program in two processes; return what it wrote."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"),
            *("--nproc-per-node=2", *map(str, words)),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def data():
    chance = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=chance)

    grads = [[draw(*shape) for shape in SHAPES] for _ in range(2)]
    for own in grads:
        own[2] = None  # one without a gradient
    return {
        "x": draw(8, 4),
        "b": draw(8, 4),
        "label": torch.tensor([0, 0, 1, 1, 2, 2, 2, 0]),
        "weights": draw(2, 8, 4),
        "columns": draw(2, 4),
        "batches": [5 + 3 * draw(8, 4), draw(8, 4)],
        "pull": draw(8, 4),
        "weight": 1 + draw(4),
        "bias": draw(4),
        "shapes": SHAPES,
        "grads": grads,
        "pulls": draw(2, 4, 3),
    }


@pytest.fixture(scope="module")
def told(data, tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(data, folder / "data.pt")
    torchrun(SCRIPT, folder, folder=folder)
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


def part(name, told):
    return [one[name] for one in told]


def joined(pieces):
    return torch.cat(list(pieces))


def test_alone_a_process_is_the_first_of_one_and_nothing_is_summed():
    x = torch.arange(3.0, requires_grad=True)
    with ranks.joined():
        assert (ranks.rank(), ranks.size()) == (0, 1)
        assert (ranks.any_rank(True), ranks.any_rank(False), ranks.total_count(5)) == (True, False, 5)
        assert ranks.gather(x) is x
        assert ranks.sum_over_ranks(x) is x
        assert torch.equal(ranks.total(x), x)
        assert not ranks.total(x).requires_grad
        assert ranks.from_first(x) is x
        assert (ranks.text_from_first("é"), ranks.text_from_each("é")) == ("é", ["é"])
        parameter = torch.nn.Parameter(torch.ones(2))
        parameter.grad = torch.ones(2)
        ranks.sum_gradients([parameter])
        assert torch.equal(parameter.grad, torch.ones(2))


def test_processes_count_and_agree(told):
    for rank, one in enumerate(part("counts", told)):
        assert one["place"] == (rank, 2, rank)
        assert one["any"] == (False, True, True, True)
        assert one["count"] == 8
        assert one["total"].tolist() == [3.0, 30.0]
        assert one["from_first"].tolist() == [7, 8]
        assert (one["text_from_first"], one["text_from_each"]) == ("éé", ["éé", "ééééé"])


def test_a_gather_joins_unequal_shares_in_the_order_of_ranks(told, data):
    for one in part("gather", told):
        assert torch.equal(one["joined"], data["x"])
        assert torch.equal(one["labels"], data["label"])


def test_a_gathered_rows_gradient_is_what_all_processes_send_back(told, data):
    # d/dx of the sum of w_0 x + w_1 x, row by row.
    found = joined(one["x_grad"] for one in part("gather", told))
    torch.testing.assert_close(found, data["weights"][0] + data["weights"][1])


def test_a_sums_gradient_flows_back_into_every_share(told, data):
    both = part("gather", told)
    for one in both:
        torch.testing.assert_close(one["summed"], data["x"].sum(dim=0))
    # Both processes' losses pull at the sum, and so at every row.
    pulls = (data["columns"][0] + data["columns"][1]).expand(8, 4)
    torch.testing.assert_close(joined(one["y_grad"] for one in both), pulls)


@pytest.fixture
def one_norm(data):
    """torch's own batch norm on the whole batch."""
    norm = torch.nn.BatchNorm1d(4)
    with torch.no_grad():
        norm.weight.copy_(data["weight"])
        norm.bias.copy_(data["bias"])
    return norm


def test_a_batch_norm_over_two_processes_is_torchs_over_the_joined_batch(told, data, one_norm):
    both = part("norm", told)
    for i, batch in enumerate(data["batches"]):
        x = batch.clone().requires_grad_()
        one_norm.zero_grad()
        out = one_norm(x)
        (out * data["pull"]).sum().backward()
        torch.testing.assert_close(joined(one["outputs"][i] for one in both), out.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(joined(one["x_grads"][i] for one in both), x.grad, atol=1e-5, rtol=1e-4)
        for name, grad in (("weight_grads", one_norm.weight.grad), ("bias_grads", one_norm.bias.grad)):
            torch.testing.assert_close(sum(one[name][i] for one in both), grad, atol=1e-5, rtol=1e-4)
    one_norm.eval()
    torch.testing.assert_close(joined(one["evaluated"] for one in both), one_norm(data["x"]).detach())
    for one in both:
        torch.testing.assert_close(one["state"], one_norm.state_dict())


def test_alone_it_is_torchs_batch_norm_to_the_last_bit(data, one_norm):
    ours = GlobalBatchNorm1d(4)
    ours.load_state_dict(one_norm.state_dict())
    for batch in data["batches"]:
        assert torch.equal(ours(batch), one_norm(batch))
    assert all(torch.equal(value, one_norm.state_dict()[name]) for name, value in ours.state_dict().items())
    assert torch.equal(ours.eval()(data["x"]), one_norm.eval()(data["x"]))


@pytest.mark.parametrize("bucket", [1, 7, 12, 1000])
def test_gradients_are_summed_across_the_borders_of_buckets(told, data, bucket):
    # Sizes 6, 5, (none), 9, 1: a bucket of 7 splits them everywhere, one of 12 after the first two.
    for one in part("gradients", told):
        assert len(one[bucket]) == len(SHAPES)
        for found, mine, other in zip(one[bucket], *data["grads"], strict=True):
            assert (found is None) == (mine is None)
            if mine is not None:
                torch.testing.assert_close(found, mine + other)


@pytest.mark.parametrize("name", ["contrastive", "normalised", "triplet", "cross_entropy"])
def test_shares_of_a_loss_sum_to_the_loss_of_the_whole_batch(told, data, name):
    x = data["x"].clone().requires_grad_()
    loss = {
        "contrastive": lambda: losses.contrastive_pair(x, data["b"], data["label"]),
        "normalised": lambda: losses.contrastive_pair(x, data["b"], data["label"], normalize=True, temperature=0.2),
        "triplet": lambda: losses.batch_hard_triplet(x, data["label"], margin=0.3),
        "cross_entropy": lambda: losses.cross_entropy(x, data["label"], label_smoothing=0.1),
    }[name]()
    loss.backward()
    both = [one[name] for one in part("losses", told)]
    torch.testing.assert_close(sum(share for share, _ in both), loss.detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(joined(grad for _, grad in both), x.grad, atol=1e-6, rtol=1e-4)


def test_accumulated_gradients_of_every_process_survive_being_saved(told, data):
    # Two steps of Adam on the mean over two batches of the sum over both processes.
    weight = torch.ones(3)
    m = v = torch.zeros(3)
    for step, pulls in enumerate((data["pulls"][:, :2], data["pulls"][:, 2:]), start=1):
        g = pulls.sum(dim=(0, 1)) / 2
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        weight = weight - 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    for undisturbed, left in part("optimizer", told):
        torch.testing.assert_close(undisturbed, weight)
        assert torch.equal(left, undisturbed)
