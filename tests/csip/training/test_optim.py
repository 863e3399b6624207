import dataclasses
import math

import pytest
import torch

from csip.config import PretrainConfig, Stage1Config, Stage2Config
from csip.models.checkpoints import load_checkpoint
from csip.training import optim

BASE = 5e-6


@pytest.fixture
def network(untrained):
    return load_checkpoint(untrained)[0]


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
    optimizer = optim.adam(optim.stage2_groups(network, Stage2Config(learning_rate=BASE)), weight_decay=1e-4)
    for factor in (0.19, 1.0, 0.01):
        optim.scale_rates(optimizer, factor)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([BASE * f * factor for f in (1, 2, 10, 20)])
    assert {g["weight_decay"] for g in optimizer.param_groups} == {1e-4}
    optim.set_rate(optimizer, 0.5)
    assert {g["lr"] for g in optimizer.param_groups} == {0.5}


def test_weight_decay_is_coupled():
    # Adam's first step is rate x sign(gradient + decay x weight), whatever their size: pull 1 against decay 2 x 3.
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = optim.adam([weight], weight_decay=2.0)
    optim.set_rate(optimizer, 0.125)
    optim.step(optimizer, -weight.sum())
    assert weight.item() == pytest.approx(3 - 0.125, rel=1e-6)


def test_a_step_forgets_the_gradient_of_the_last():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    weight.grad = torch.tensor([100.0])
    optimizer = torch.optim.SGD([weight], lr=1.0)
    optim.step(optimizer, 0.5 * weight.sum())
    assert weight.item() == 0.5


def test_the_schedule_follows_the_number_of_epochs():
    config = dataclasses.replace(Stage1Config(), epochs=10, warmup_epochs=0)
    assert optim.stage1_rate(5, config) == pytest.approx(1e-6 + 3.49e-4 / 2)
    assert optim.stage1_rate(10, config) == 1e-6
