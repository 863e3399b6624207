"""What each of two processes finds for its share of a batch; `test_ranks.py` starts it with torchrun.

Writes ``rank-N.pt`` into the folder named on the command line.
"""

import sys
from pathlib import Path

import torch

from csip import ranks
from csip.models.reid import GlobalBatchNorm1d
from csip.training import losses, optim

ROWS = (3, 5)  # of the first process, of the second


def share(whole):
    begin = sum(ROWS[: ranks.rank()])
    return whole[begin : begin + ROWS[ranks.rank()]].clone()


def leaf(whole):
    return share(whole).requires_grad_()


def tell_counts():
    first = ranks.rank() == 0
    return {
        "place": (ranks.rank(), ranks.size(), ranks.local_rank()),
        "any": (ranks.any_rank(False), ranks.any_rank(first), ranks.any_rank(not first), ranks.any_rank(True)),
        "count": ranks.total_count(ROWS[ranks.rank()]),
        "total": ranks.total(torch.tensor([1.0, 10.0]) * (1 + ranks.rank())),
        "from_first": ranks.from_first(torch.tensor([7, 8]) + 100 * ranks.rank()),
        "text_from_first": ranks.text_from_first("é" * (2 + 3 * ranks.rank())),
        "text_from_each": ranks.text_from_each("é" * (2 + 3 * ranks.rank())),
    }


def tell_gather(data):
    x = leaf(data["x"])
    joined = ranks.gather(x)
    # Each process weighs the rows in its own way, and all weights must come back to the row's owner.
    (joined * data["weights"][ranks.rank()]).sum().backward()
    summed, y = leaf(data["x"]), leaf(data["x"])
    ((summed.sum(dim=0) * 0 + ranks.sum_over_ranks(y.sum(dim=0))) * data["columns"][ranks.rank()]).sum().backward()
    return {
        "joined": joined.detach(),
        "x_grad": x.grad,
        "labels": ranks.gather(share(data["label"])),
        "summed": ranks.sum_over_ranks(y.sum(dim=0)).detach(),
        "y_grad": y.grad,
    }


def tell_norm(data):
    norm = GlobalBatchNorm1d(4)
    with torch.no_grad():
        norm.weight.copy_(data["weight"])
        norm.bias.copy_(data["bias"])
    told = {"outputs": [], "x_grads": [], "weight_grads": [], "bias_grads": []}
    for batch in data["batches"]:
        x = leaf(batch)
        norm.zero_grad()
        out = norm(x)
        (out * share(data["pull"])).sum().backward()
        told["outputs"].append(out.detach())
        told["x_grads"].append(x.grad)
        told["weight_grads"].append(norm.weight.grad.clone())
        told["bias_grads"].append(norm.bias.grad.clone())
    norm.eval()
    told["evaluated"] = norm(share(data["x"])).detach()
    told["state"] = norm.state_dict()
    return told


def tell_gradients(data):
    told = {}
    for bucket in (1, 7, 12, 1000):
        ranks._BUCKET = bucket
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in data["shapes"]]
        for parameter, grad in zip(parameters, data["grads"][ranks.rank()], strict=True):
            parameter.grad = None if grad is None else grad.clone()
        ranks.sum_gradients(parameters)
        told[bucket] = [parameter.grad for parameter in parameters]
    return told


def tell_losses(data):
    label = share(data["label"])
    told = {}
    for name, of in (
        ("contrastive", lambda x: losses.contrastive_pair(x, share(data["b"]), label)),
        ("normalised", lambda x: losses.contrastive_pair(x, share(data["b"]), label, normalize=True, temperature=0.2)),
        ("triplet", lambda x: losses.batch_hard_triplet(x, label, margin=0.3)),
        ("cross_entropy", lambda x: losses.cross_entropy(x, label, label_smoothing=0.1)),
    ):
        x = leaf(data["x"])
        loss = of(x)
        loss.backward()
        told[name] = (loss.detach(), x.grad)
    return told


def tell_optimizer(data):
    """Steps of two batches each, left in the middle of one and put back; gradients differ by process."""
    told = []
    for left in (False, True):
        weight = torch.nn.Parameter(torch.ones(3))
        adam = optim.Adam([weight], weight_decay=0.0, device="cpu", precision="float32", accumulate=2)
        adam.set_rate(0.1)
        for i, pull in enumerate(data["pulls"][ranks.rank()]):
            if left and i == 3:
                # Only the first process's state is written, and all read it.
                plain, tensors = adam.state({"weight": weight})
                box = [({"plain": plain, "tensors": tensors}, weight.detach())]
                torch.distributed.broadcast_object_list(box, 0)
                weight = torch.nn.Parameter(box[0][1].clone())
                adam = optim.Adam([weight], weight_decay=0.0, device="cpu", precision="float32", accumulate=2)
                adam.load({"weight": weight}, **box[0][0])
                adam.set_rate(0.1)
            adam.step((weight * pull).sum())
        told.append(weight.detach())
    return told


def main(folder):
    torch.set_num_threads(1)
    data = torch.load(folder / "data.pt")
    with ranks.joined():
        told = {
            "counts": tell_counts(),
            "gather": tell_gather(data),
            "norm": tell_norm(data),
            "gradients": tell_gradients(data),
            "losses": tell_losses(data),
            "optimizer": tell_optimizer(data),
        }
        torch.save(told, folder / f"rank-{ranks.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
