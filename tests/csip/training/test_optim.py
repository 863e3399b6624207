import dataclasses
import math

import pytest
import torch

from csip.config import PretrainConfig, Stage1Config, Stage2Config
from csip.models.checkpoints import load_checkpoint
from csip.training import optim

BASE = 5e-6


@pytest.fixture
def network(grown):
    return load_checkpoint(grown)[0]


def make(groups, *, weight_decay=0.0, precision="float32", accumulate=1):
    return optim.Adam(groups, weight_decay=weight_decay, device="cpu", precision=precision, accumulate=accumulate)


def rates(optimizer):
    return [group["lr"] for group in optimizer._adam.param_groups]


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (1, 1e-5 + 1 * 6.8e-5),  # (3.5e-4 - 1e-5) / 5 = 6.8e-5 an epoch
        (4, 1e-5 + 4 * 6.8e-5),
        (5, 1e-6 + 3.49e-4 * (1 + math.cos(math.pi / 24)) / 2),  # the phase counts from epoch 0: 5 / 120
        (60, 1e-6 + 3.49e-4 / 2),
        (119, 1e-6 + 3.49e-4 * (1 - math.cos(math.pi / 120)) / 2),
        (120, 1e-6),
    ],
)
def test_stage_1_rates_are_those_of_the_method(epoch, rate):
    assert optim.stage1_rate(epoch, Stage1Config()) == pytest.approx(rate, rel=1e-9)


def test_stage_1_rates_in_plain_numbers():
    # The formula above once more, by pocket calculator.
    rates = {e: optim.stage1_rate(e, Stage1Config()) for e in (1, 4, 5, 60, 119)}
    want = {1: 7.8e-5, 4: 2.82e-4, 5: 3.485071e-4, 60: 1.755e-4, 119: 1.0598e-6}
    assert rates == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(1, 0.19), (9, 0.91), (10, 1), (29, 1), (30, 0.1), (49, 0.1), (50, 0.01), (70, 0.001), (80, 0.001)],
)
def test_stage_2_factors_are_those_of_the_method(epoch, factor):
    assert optim.stage2_factor(epoch, Stage2Config()) == pytest.approx(factor, rel=1e-9)


def test_a_milestone_inside_the_warm_up_multiplies():
    config = Stage2Config(warmup_epochs=10, milestones=(5,))
    assert optim.stage2_factor(6, config) == pytest.approx((0.1 + 0.09 * 6) * 0.1, rel=1e-9)


@pytest.mark.parametrize(("progress", "share"), [(0, 0.1), (0.05, 0.55), (0.1, 1), (0.55, 0.5), (1, 0)])
def test_pretraining_warms_up_over_a_tenth_and_ends_at_zero(progress, share):
    rate = optim.pretrain_rate(progress, PretrainConfig(learning_rate=2e-3))
    assert rate == pytest.approx(2e-3 * share, abs=1e-12)


def test_stage_2_groups_hold_every_trainable_parameter_once_at_its_rate(network):
    groups = optim.stage2_groups(network, Stage2Config(learning_rate=BASE))
    rate_of = {}
    for group in groups:
        for parameter in group["params"]:
            assert id(parameter) not in rate_of
            rate_of[id(parameter)] = group["base_rate"]
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert set(rate_of) == {id(p) for p in trainable.values()}
    by_name = {name: rate_of[id(p)] for name, p in trainable.items()}
    # One of each kind, by hand.
    examples = {
        "image_encoder.trunk.blocks.0.attn.qkv.weight": BASE,
        "image_encoder.trunk.blocks.0.attn.qkv.bias": 2 * BASE,
        "image_encoder.trunk.norm.bias": 2 * BASE,
        "image_encoder.camera_table": BASE,
        "image_encoder.projection.weight": BASE,
        "skeleton_encoder.projection.weight": BASE,
        "skeleton_encoder.embed_joint.0.bias": 2 * BASE,
        "head_g.classifier.weight": BASE,
        "head_g.norm.weight": BASE,
        "head_v.classifier.weight": BASE,
        "head_f.norm_clip.weight": BASE,
        "head_f.classifier.weight": 10 * BASE,
        "temporal.visual_message.weight": 10 * BASE,
        "temporal.visual_message.bias": 20 * BASE,
        "temporal.visual_attention.in_proj_bias": 20 * BASE,
        "temporal.token_type.weight": 10 * BASE,
        "prototype_updater.gate.0.weight": 10 * BASE,
        "prototype_updater.gate.0.bias": 20 * BASE,
    }
    assert {name: by_name[name] for name in examples} == pytest.approx(examples)
    # And every other by the two rules.
    for name, rate in by_name.items():
        is_head = name.split(".")[0] in ("temporal", "prototype_updater") or name == "head_f.classifier.weight"
        assert rate == pytest.approx(BASE * (2 if name.endswith("bias") else 1) * (10 if is_head else 1)), name


def test_the_frozen_bias_of_a_bnneck_is_in_no_group(network):
    held = {id(p) for group in optim.stage2_groups(network, Stage2Config()) for p in group["params"]}
    necks = [network.head_g.norm, network.head_v.norm, network.head_f.norm_clip, network.head_f.norm_frames]
    for neck in necks:
        assert not neck.bias.requires_grad
        assert id(neck.bias) not in held
        assert id(neck.weight) in held


def test_parameters_frozen_by_the_recipe_are_in_no_group(network):
    network.skeleton_encoder.requires_grad_(False)
    held = {id(p) for group in optim.stage2_groups(network, Stage2Config()) for p in group["params"]}
    assert not held & {id(p) for p in network.skeleton_encoder.parameters()}


def test_factors_of_one_give_all_parameters_one_rate(network):
    config = Stage2Config(learning_rate=BASE, bias_factor=1, head_factor=1)
    (group,) = optim.stage2_groups(network, config)
    assert group["lr"] == BASE


def test_scaling_keeps_each_groups_own_base_rate(network):
    optimizer = make(optim.stage2_groups(network, Stage2Config(learning_rate=BASE)), weight_decay=1e-4)
    for factor in (0.19, 1.0, 0.01):
        optimizer.scale_rates(factor)
        assert rates(optimizer) == pytest.approx([BASE * f * factor for f in (1, 2, 10, 20)])
    assert {g["weight_decay"] for g in optimizer._adam.param_groups} == {1e-4}
    optimizer.set_rate(0.5)
    assert set(rates(optimizer)) == {0.5}


def test_weight_decay_is_coupled():
    # Adam's first step is rate x sign(gradient + decay x weight), whatever their size: pull 1 against decay 2 x 3.
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = make([weight], weight_decay=2.0)
    optimizer.set_rate(0.125)
    optimizer.step(-weight.sum())
    assert weight.item() == pytest.approx(3 - 0.125, rel=1e-6)


def slow_adam(weight, gradients, rate, decay):
    """Adam as its paper has it, with coupled L2, on plain numbers: the weight after every gradient."""
    m = v = 0.0
    out = []
    for t, gradient in enumerate(gradients, start=1):
        g = gradient + decay * weight
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        weight -= rate * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        out.append(weight)
    return out


def test_a_step_is_adams_and_forgets_the_gradient_of_the_last():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = make([weight], weight_decay=0.5)
    optimizer.set_rate(0.1)
    found = []
    for factor in (3.0, -1.0, 0.25):
        optimizer.step(factor * weight.sum())
        found.append(weight.item())
    assert found == pytest.approx(slow_adam(1.0, [3.0, -1.0, 0.25], 0.1, 0.5), rel=1e-5)


def test_accumulated_batches_step_with_their_mean_gradient():
    # Gradients 3, -1, 4 | 1 and, at the epoch's end, a group of one; then 2, 2, 5 again from nothing.
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = make([weight], weight_decay=0.5, accumulate=3)
    optimizer.set_rate(0.1)
    found = []
    for factor, last in ((3.0, False), (-1.0, False), (4.0, False), (1.0, True), (2.0, False), (2.0, False), (5.0, 0)):
        optimizer.step(factor * weight.sum(), last=last)
        found.append(weight.item())
    first, second, third = slow_adam(1.0, [2.0, 1.0, 3.0], 0.1, 0.5)
    assert found == pytest.approx([1.0, 1.0, first, second, second, second, third], rel=1e-5)


@pytest.mark.parametrize("batches", [1, 2])
def test_the_epochs_last_incomplete_group_makes_a_step_of_its_own_mean(batches):
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = make([weight], accumulate=4)
    optimizer.set_rate(0.1)
    gradients = [3.0, -1.0][:batches]
    for i, factor in enumerate(gradients):
        optimizer.step(factor * weight.sum(), last=i + 1 == batches)
    assert weight.item() == pytest.approx(slow_adam(1.0, [sum(gradients) / batches], 0.1, 0.0)[-1], rel=1e-5)


def test_flushing_nothing_is_no_step():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = make([weight], weight_decay=1.0, accumulate=3)
    optimizer.set_rate(0.1)
    optimizer.flush()
    assert weight.item() == 1.0
    optimizer.step(weight.sum())
    optimizer.flush()
    assert weight.item() == pytest.approx(0.9, rel=1e-5)
    optimizer.flush()
    assert weight.item() == pytest.approx(0.9, rel=1e-5)


def test_a_parameter_without_gradient_stays_where_it_is():
    one, other = (torch.nn.Parameter(torch.tensor([1.0])) for _ in range(2))
    optimizer = make([one, other], weight_decay=1.0, accumulate=2)
    optimizer.set_rate(0.1)
    optimizer.step(one.sum())
    optimizer.step(one.sum())
    assert (one.item(), other.item()) == (pytest.approx(0.9, rel=1e-5), 1.0)


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
def test_a_cpu_computes_in_float32_whatever_the_precision(precision):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(8, 8), torch.randn(4, 8)
    optimizer = make(list(layer.parameters()), precision=precision)
    plain = layer(x)
    with optimizer.forward_precision():
        found = layer(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, plain)
    # No loss scaling either: a gradient of 1e18 times a scale of 65,536 has an infinite square, and the step left out.
    optimizer.set_rate(0.1)
    before = layer.bias.detach().clone()
    optimizer.step(1e18 * layer(x).sum() / 4)
    torch.testing.assert_close(layer.bias.detach(), before - 0.1, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("left", [1, 2, 3, 4, 5])
def test_an_optimizer_that_is_put_back_goes_on_bit_for_bit(left):
    # Steps of two batches each, left after every one of them: in the middle of a step and between two.
    def begin():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        network[2].bias.requires_grad_(False)
        groups = [
            {"params": [network[0].weight, network[2].weight], "lr": 0.1, "base_rate": 0.1},
            {"params": [network[0].bias], "lr": 0.2, "base_rate": 0.2},
        ]
        return network, make(groups, weight_decay=0.01, accumulate=2)

    def train(network, optimizer, batches):
        optimizer.scale_rates(0.5)
        for i in batches:
            x = torch.randn(3, 5, generator=torch.Generator().manual_seed(i))
            optimizer.step(network(x).square().mean())

    network, optimizer = begin()
    train(network, optimizer, range(6))
    want = network.state_dict()

    network, optimizer = begin()
    train(network, optimizer, range(left))
    plain, tensors = optimizer.state(dict(network.named_parameters()))
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    tensors = {name: value.clone() for name, value in tensors.items()}
    assert any(name.startswith("gradient.") for name in tensors) == (left % 2 == 1)
    fresh, again = begin()
    fresh.load_state_dict(weights)
    again.load(dict(fresh.named_parameters()), plain, tensors)
    train(fresh, again, range(left, 6))
    assert all(torch.equal(value, want[name]) for name, value in fresh.state_dict().items())


def test_moments_of_another_shape_or_missing_ones_are_refused():
    layer = torch.nn.Linear(3, 2)
    optimizer = make(list(layer.parameters()))
    optimizer.step(layer(torch.ones(1, 3)).sum())
    plain, tensors = optimizer.state(dict(layer.named_parameters()))
    other = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"the optimizer's moments of weight have another shape than \(2, 2\)"):
        make(list(other.parameters())).load(dict(other.named_parameters()), plain, tensors)
    tensors.pop("exp_avg_sq.bias")
    with pytest.raises(KeyError, match=r"exp_avg_sq\.bias"):
        make(list(layer.parameters())).load(dict(layer.named_parameters()), plain, tensors)


def test_the_schedule_follows_the_number_of_epochs():
    config = dataclasses.replace(Stage1Config(), epochs=10, warmup_epochs=0)
    assert optim.stage1_rate(5, config) == pytest.approx(1e-6 + 3.49e-4 / 2)
    assert optim.stage1_rate(10, config) == 1e-6
