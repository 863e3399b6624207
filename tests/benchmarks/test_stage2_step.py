"""One step of stage 2 at the paper's sizes, against the same step written naively.

Naive: the attention maps of all ViT layers kept and returned, PFU's prototypes expanded to every clip from the start
and their self-attention materialised, MLPs left to PyTorch. Same weights, same mathematics: checked before timing.

Each measurement has a fresh process with the environment of a stage's, since a process's peak memory never falls. A
whole step is forward, loss, backward and Adam; "fwd+bwd" is the peak resident memory after the first backward pass,
when Adam has no state yet.

Run: pytest tests/benchmarks/test_stage2_step.py --benchmark-only
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from csip.models.image_encoder import ImageEncoder
from csip.models.prototypes import PrototypeFusionUpdater, build_context
from csip.models.reid import CsipReID, TrainOutput
from csip.models.skeleton_encoder import SkeletonEncoder
from csip.training.losses import stage2_loss
from flows.together import ENVIRONMENT

CLIP = "vit_base_patch16_clip_quickgelu_224.openai"
B, T, N, J, K, C = 4, 8, 129, 17, 625, 512
CAMERAS = 6
WEIGHTS = {
    "label_smoothing": 0.1,
    "margin": 0.3,
    "identity_weight": 0.25,
    "triplet_weight": 1.0,
    "prototype_weight": 1.0,
    "frame_weight": 1.3,
}


def build(num_labels):
    torch.manual_seed(0)
    model = CsipReID(
        image_encoder=ImageEncoder(name=CLIP, image_size=(256, 128), width=C, num_cameras=CAMERAS),
        skeleton_encoder=SkeletonEncoder(positions=torch.randn(J, 10), width=C),
        num_labels=num_labels,
    )
    model.set_prototypes(torch.randn(num_labels, C), torch.randn(num_labels, C))
    return model


def batch():
    torch.manual_seed(1)
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[1, 2], mask[3] = False, False
    crops, skeleton = torch.randn(B, T, 3, 256, 128), torch.randn(B, T, J, 3)
    return (crops, skeleton, mask, torch.tensor([0, 3, 5, 1])), torch.tensor([0, 0, 1, 1])


# The naive form.


def naive_attention(q, k, v, heads, keep=None):
    """(B, L, D) and two of (B, U, D) to (B, L, D) and the maps (B, heads, L, U)."""
    q, k, v = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in (q, k, v))
    logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if keep is not None:
        logits = logits.masked_fill(~keep, float("-inf"))
    maps = torch.softmax(logits, dim=-1)
    return (maps @ v).transpose(1, 2).flatten(2), maps


def naive_quick_mlp(up, down, x, dropout=0.0):
    x = up(x)
    return down(F.dropout(x * torch.sigmoid(1.702 * x), dropout))


def naive_images(encoder, crops, camid):
    """Every token, its projection, and every layer's attention maps."""
    trunk = encoder.trunk
    x = trunk.patch_embed(crops)
    cls = trunk.cls_token + encoder.camera_scale * encoder.camera_table[camid][:, None]
    x = trunk.norm_pre(torch.cat([cls, x], dim=1) + trunk.pos_embed)
    maps = []
    for block in trunk.blocks:
        attended, one = naive_attention(*block.attn.qkv(block.norm1(x)).chunk(3, dim=-1), block.attn.num_heads)
        maps.append(one)
        x = x + block.attn.proj(attended)
        x = x + naive_quick_mlp(block.mlp.fc1, block.mlp.fc2, block.norm2(x))
    x = trunk.norm(x)
    return x, encoder.projection(x), maps


def naive_prototypes(updater, p_v, p_s, v_bar, xp, joints, frame_mask):
    """Logits as of `PrototypeFusionUpdater`."""
    alpha = torch.sigmoid(updater.gate(torch.cat([p_s, p_v], dim=1)))
    prototypes = (alpha * p_s + (1 - alpha) * p_v)[None].repeat(len(v_bar), 1, 1)
    decoder = updater.decoder
    context, valid = build_context(xp, joints, frame_mask)
    context, x = decoder.context_in(context), decoder.prototypes_in(prototypes)
    for layer in decoder.layers:
        drop = layer.dropout
        for norm, one, given, keep in (
            (layer.norm_self, layer.self_attention, None, None),
            (layer.norm_cross, layer.cross_attention, context, valid[:, None, None]),
        ):
            normed = norm(x)
            given = normed if given is None else given
            attended, _ = naive_attention(one.query(normed), one.key(given), one.value(given), one.heads, keep)
            x = x + drop(one.out(attended))
        rate = drop.p if layer.training else 0.0
        x = x + drop(naive_quick_mlp(layer.mlp[0], layer.mlp[3], layer.norm_mlp(x), rate))
    return (v_bar[:, None] * (prototypes + decoder.out(x))).sum(dim=2)


def naive_forward(model, crops, skeleton, frame_mask, camid):
    """`CsipReID.forward`, and the attention maps; SGTM's MLP is to be a plain one."""
    x, xp, maps = naive_images(model.image_encoder, crops.flatten(0, 1), camid.repeat_interleave(T))
    x, xp = x.unflatten(0, (B, T)), xp.unflatten(0, (B, T))
    g, v_bar = x[:, :, 0].mean(dim=1), xp[:, :, 0].mean(dim=1)
    s, _ = model.skeleton_encoder(skeleton, frame_mask)
    f, f_t = model.temporal(x.detach(), s, frame_mask)
    logits_f, logits_frames = model.head_f(f, f_t)
    prototypes = model.visual_prototypes, model.skeleton_prototypes
    output = TrainOutput(
        g=g,
        v_bar=v_bar,
        f=f,
        logits_g=model.head_g(g),
        logits_v=model.head_v(v_bar),
        logits_f=logits_f,
        logits_frames=logits_frames,
        logits_prototypes=naive_prototypes(model.prototype_updater, *prototypes, v_bar, xp, s, frame_mask),
    )
    return output, maps


# What a fresh process does.


def peak():
    """Peak resident memory so far, in GB (10^9 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def saved_bytes(forward, parameters):
    """Bytes that `forward` keeps for its backward pass, each storage once, parameters left out."""
    own = {one.untyped_storage().data_ptr() for one in parameters}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    return sum(size for place, size in held.items() if place not in own), result


def measure(forward, parameters, rounds):
    """Take whole steps; seconds are those of the fastest one, since a busy neighbour can only add."""
    base = peak()
    optimizer = torch.optim.Adam(parameters, lr=5e-6, weight_decay=1e-4)
    seconds, figures = [], {"base": base}
    for i in range(rounds + 1):
        begun, cpu = time.perf_counter(), cpu_seconds()
        if i == 0:
            figures["saved"], (loss, kept) = saved_bytes(forward, parameters)
        else:
            loss, kept = forward()
        middle, cpu_middle = time.perf_counter(), cpu_seconds()
        loss.backward()
        end, cpu_end = time.perf_counter(), cpu_seconds()
        if i == 0:
            figures["peak"] = peak()
        del loss, kept
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if i or not rounds:
            seconds.append(
                (middle - begun, end - middle, time.perf_counter() - end, cpu_middle - cpu, cpu_end - cpu_middle)
            )
    best = [min(column) for column in zip(*seconds, strict=True)]
    names = ("forward", "backward", "optimizer", "cpu_forward", "cpu_backward")
    return figures | dict(zip(names, best, strict=True)) | {"whole": peak(), "saved": figures["saved"] / 1e9}


def whole_step(variant, num_labels, rounds):
    model = build(num_labels).train()
    inputs, label = batch()
    if variant == "naive":
        model.temporal.mlp = nn.Sequential(*model.temporal.mlp)

    def forward():
        output, kept = (model(*inputs), None) if variant == "ours" else naive_forward(model, *inputs)
        return stage2_loss(output, label, **WEIGHTS).total, kept

    return measure(forward, [one for one in model.parameters() if one.requires_grad], rounds)


def prototype_part(variant, num_labels, rounds):
    torch.manual_seed(0)
    model = PrototypeFusionUpdater(width=C).train()
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((B, C), (B, T, N, C), (B, T, J, C))]
    inputs = (torch.randn(num_labels, C), torch.randn(num_labels, C), *leaves, torch.ones(B, T, dtype=torch.bool))

    # Without the smoothing most gradients are subnormal numbers, and arithmetic on those is ten times as slow.
    def forward():
        logits = model(*inputs) if variant == "ours" else naive_prototypes(model, *inputs)
        return F.cross_entropy(logits, torch.tensor([0, 0, 1, 1]), label_smoothing=0.1), None

    return measure(forward, [*model.parameters(), *leaves], rounds)


def compare(num_labels):
    """Each output's and gradient's largest difference between both variants, as a share of its largest value."""
    model = build(num_labels).eval()
    inputs, label = batch()
    found = []
    for naive in (False, True):
        if naive:
            model.temporal.mlp = nn.Sequential(*model.temporal.mlp)
        output = naive_forward(model, *inputs)[0] if naive else model(*inputs)
        loss = stage2_loss(output, label, **WEIGHTS).total
        model.zero_grad(set_to_none=True)
        loss.backward()
        names = ("g", "v_bar", "f", "logits_g", "logits_v", "logits_f", "logits_frames", "logits_prototypes")
        values = {name: getattr(output, name).detach() for name in names} | {"loss": loss.detach()}
        found.append(values | {name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    ours, naive = found
    if ours.keys() != naive.keys():
        raise ValueError(f"gradients: {sorted(ours.keys() ^ naive.keys())} come from one variant only.")

    def scale(name):
        # Some biases have no gradient but rounding: one that every prototype gets alike moves all logits by the same
        # amount. So a bias is measured by the weight beside it, too.
        beside = naive.get(name.removesuffix("bias") + "weight", naive[name]) if name.endswith(".bias") else naive[name]
        return max(float(naive[name].abs().max()), float(beside.abs().max()))

    return {name: float((ours[name] - value).abs().max()) / scale(name) for name, value in naive.items()}


# What pytest does.


def in_a_fresh_process(task, variant, num_labels, rounds=3):
    command = [sys.executable, __file__, task, variant, str(num_labels), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT | os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def line(figures):
    return (
        f"forward {figures['forward']:6.2f} s (CPU {figures['cpu_forward']:.1f}), "
        f"backward {figures['backward']:6.2f} s (CPU {figures['cpu_backward']:.1f}), "
        f"saved for backward {figures['saved']:5.2f} GB, peak fwd+bwd {figures['peak']:5.2f} GB, "
        f"whole steps {figures['whole']:5.2f} GB (before: {figures['base']:.2f})"
    )


@pytest.mark.benchmark(group="stage 2")
def test_both_variants_compute_the_same(benchmark):
    found = benchmark.pedantic(in_a_fresh_process, args=("compare", "both", 100), rounds=1)
    assert len(found) > 300
    assert max(found.values()) < 1e-4, sorted(found.items(), key=lambda item: -item[1])[:5]


@pytest.mark.benchmark(group="stage 2")
def test_one_step(benchmark, capsys):
    """Alternate the variants, so that a busy neighbour slows both alike; print figures and ratios."""
    found = {"naive": [], "ours": []}

    def both():
        for variant, figures in found.items():
            figures.append(in_a_fresh_process("step", variant, K))

    benchmark.pedantic(both, rounds=2)
    best = {variant: {key: min(one[key] for one in many) for key in many[0]} for variant, many in found.items()}
    ratios = ", ".join(
        f"{key} {best['ours'][key] / best['naive'][key]:.2f}"
        for key in ("forward", "backward", "cpu_forward", "cpu_backward", "saved", "peak", "whole")
    )
    with capsys.disabled():
        sys.stdout.write(f"\nload {os.getloadavg()[0]:.1f}; B={B} T={T} K={K}\n")
        for variant, figures in best.items():
            sys.stdout.write(f"{variant:6} {line(figures)}\n")
        sys.stdout.write(f"ours / naive: {ratios}\n")


@pytest.mark.benchmark(group="stage 2, growth with K")
@pytest.mark.parametrize("task", ["prototypes", "step"])
@pytest.mark.parametrize(
    ("variant", "num_labels"),
    [
        (variant, k)
        for k in (100, 625, 2500, 10_000)
        for variant in ("naive", "ours")
        if (variant, k) != ("naive", 10_000)
    ],
)
def test_growth_with_identities(benchmark, capsys, task, variant, num_labels):
    figures = benchmark.pedantic(in_a_fresh_process, args=(task, variant, num_labels, 1), rounds=1)
    with capsys.disabled():
        sys.stdout.write(f"\n{task:10} {variant:6} K={num_labels:6} {line(figures)}\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=["compare", "step", "prototypes"])
    parser.add_argument("variant")
    parser.add_argument("num_labels", type=int)
    parser.add_argument("rounds", type=int)
    given = parser.parse_args()
    if given.task == "compare":
        result = compare(given.num_labels)
    else:
        run = whole_step if given.task == "step" else prototype_part
        result = run(given.variant, given.num_labels, given.rounds)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
