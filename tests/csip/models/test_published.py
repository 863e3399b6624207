"""Published checkpoints, against a forward pass written out from method.md section 7 over the published names."""

import json
import math
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from csip import tables
from csip.errors import CheckpointError
from csip.joints import LAYOUTS
from csip.lineage import History
from csip.models import published
from csip.models.checkpoints import load_checkpoint
from csip.models.published import KEPT, TOWERS, Tower, import_checkpoint, import_published

HEADS = 8
GRAPH = "skeleton_encoder.skeleton_graph_transformer"
TINY = Tower(
    name="vit_base_patch16_clip_quickgelu_224.openai", token_width=32, depth=2, patch=16, heads=4, height=32, width=16
)
SMALL = {"tower": TINY, "c": 16, "people": 5, "cameras": 3, "layers": 2, "positions": 10, "decoder": 2}
TRUE = {"tower": TOWERS[0], "c": 512, "people": 625, "cameras": 6, "layers": 10, "positions": 10, "decoder": 2}


# ------------------------------------------------------------------------------------------------ a published file


class Maker:
    """Random tensors under published names; norms near 1, so that deep stacks neither vanish nor overflow."""

    def __init__(self, seed):
        self.state = {}
        self.random = torch.Generator().manual_seed(seed)

    def draw(self, name, *shape, std=None, mean=0.0):
        std = shape[-1] ** -0.5 if std is None else std
        self.state[name] = mean + std * torch.randn(*shape, generator=self.random)

    def linear(self, name, wide, narrow, *, bias=True, std=None):
        self.draw(f"{name}.weight", wide, narrow, std=std)
        if bias:
            self.draw(f"{name}.bias", wide, std=0.1)

    def norm(self, name, width):
        self.draw(f"{name}.weight", width, mean=1.0, std=0.1)
        self.draw(f"{name}.bias", width, std=0.1)

    def batch_norm(self, name, width):
        self.norm(name, width)
        self.draw(f"{name}.running_mean", width, std=0.3)
        self.state[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=self.random)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def attention(self, name, width):
        self.draw(f"{name}.in_proj_weight", 3 * width, width)
        self.draw(f"{name}.in_proj_bias", 3 * width, std=0.1)
        self.linear(f"{name}.out_proj", width, width)


def published_state(*, tower, c, people, cameras, layers, positions, decoder, seed=0):
    """Every tensor that section 7 names, in the sizes given."""
    d, make = tower.token_width, Maker(seed)
    make.draw("image_encoder.conv1.weight", d, 3, tower.patch, tower.patch, std=0.05)
    make.draw("image_encoder.class_embedding", d, std=0.5)
    make.draw("image_encoder.positional_embedding", tower.tokens, d, std=0.5)
    for name in ("ln_pre", "ln_post"):
        make.norm(f"image_encoder.{name}", d)
    make.draw("image_encoder.proj", d, c, std=d**-0.5)
    for n in range(tower.depth):
        block = f"image_encoder.transformer.resblocks.{n}"
        make.attention(f"{block}.attn", d)
        make.norm(f"{block}.ln_1", d)
        make.norm(f"{block}.ln_2", d)
        make.linear(f"{block}.mlp.c_fc", 4 * d, d)
        make.linear(f"{block}.mlp.c_proj", d, 4 * d)
    make.draw("cv_embed", cameras, d, std=0.5)
    make.draw("skeleton_encoder.proj_ske", c, c)
    make.linear(f"{GRAPH}.input_fc1", c, 3)
    make.linear(f"{GRAPH}.input_fc2", c, c)
    make.linear(f"{GRAPH}.pos_fc", c, positions)
    for n in range(layers):
        block = f"{GRAPH}.transformer_blocks.{n}"
        # Wide enough for logits beyond 5, which are clamped.
        make.linear(f"{block}.qkv_proj", 3 * c, c, std=2.5 * c**-0.5)
        make.linear(f"{block}.out_proj", c, c)
        make.linear(f"{block}.ffn.0", 2 * c, c)
        make.linear(f"{block}.ffn.3", c, 2 * c)
        make.norm(f"{block}.norm1", c)
        make.norm(f"{block}.norm2", c)
    make.linear(f"{GRAPH}.joint_prompt.0", c, c)
    make.linear(f"{GRAPH}.traj_prompt.0", c, c)
    make.linear("PF.fc.0", c, 2 * c)
    make.linear("PF.fc.2", 1, c)
    for name in ("memory_proj.0", "memory_proj.2", "text_proj.0", "out_proj.0", "norm"):
        make.norm(f"VTU.{name}", c)
    for name in ("memory_proj.1", "text_proj.1", "out_proj.1"):
        make.linear(f"VTU.{name}", c, c)
    make.draw("VTU.alpha", 1)
    for n in range(decoder):
        layer = f"VTU.decoder.{n}"
        for kind in ("self_attn", "cross_attn"):
            for part in ("q_proj", "k_proj", "v_proj"):
                make.linear(f"{layer}.{kind}.{part}", c, c, bias=False)
            make.linear(f"{layer}.{kind}.proj", c, c)
        for name in ("norm1", "norm2", "norm3"):
            make.norm(f"{layer}.{name}", c)
        make.linear(f"{layer}.mlp.0", 4 * c, c)
        make.linear(f"{layer}.mlp.3", c, 4 * c)
    make.linear("TMM.msg_fc_vis", d, d)
    make.linear("TMM.msg_fc_ske", d, c)
    for name in ("msg_ln_vis", "msg_ln_ske", "norm_vis", "norm_ske", "ln_1", "ln_2"):
        make.norm(f"TMM.{name}", d)
    for name in ("msg_attn_vis", "msg_attn_ske", "cross_attn_ske_to_vis", "attention"):
        make.attention(f"TMM.{name}", d)
    make.linear("TMM.mlp.0", 4 * d, d)
    make.linear("TMM.mlp.3", d, 4 * d)
    make.draw("TMM.token_type_embed.weight", 4, d, std=1.0)
    make.linear("TMM.token_attn_score.0", 1, d)
    for head, norm, width in (
        ("classifier", "bottleneck", d),
        ("classifier_proj", "bottleneck_proj", c),
        ("classifier_proj_temp", "bottleneck_proj_temp", d),
        ("classifier_proj_temp2", "bottleneck_proj_temp2", d),
        ("classifier_ske", "bottleneck_ske", c),
    ):
        make.linear(head, people, width, bias=False)
        make.batch_norm(norm, width)
    return make.state


UNUSED = {
    *("classifier_proj_temp2.weight", "classifier_ske.weight", "VTU.alpha", "VTU.norm.weight", "VTU.norm.bias"),
    *(f"bottleneck_ske.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    *(f"{GRAPH}.{m}_prompt.0.{n}" for m in ("joint", "traj") for n in ("weight", "bias")),
}


# --------------------------------------------------------------------- the forward pass, written out, in eval mode


class Published:
    """The layers of section 7 on tensors by their published names: functional ops only, nothing of ours."""

    def __init__(self, state, image_heads):
        self.state, self.image_heads = state, image_heads

    def __getitem__(self, name):
        return self.state[name]

    def linear(self, x, name):
        return F.linear(x, self[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], 1e-5)

    def batch_norm(self, x, name):
        parts = (self[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, training=False, eps=1e-5)

    @staticmethod
    def heads(q, k, v, heads, clamp=None):
        """Attend in plain steps: (..., L, W) and (..., S, W) to (..., L, W)."""
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k, v))
        logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if clamp is not None:
            logits = logits.clamp(-clamp, clamp)
        return (logits.softmax(dim=-1) @ v).transpose(-3, -2).flatten(-2)

    def packed_attention(self, query, source, name, heads):
        """What torch's nn.MultiheadAttention computes of its packed projection."""
        weight, bias = self[f"{name}.in_proj_weight"].chunk(3), self[f"{name}.in_proj_bias"].chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, source, source), weight, bias, strict=True))
        return self.linear(self.heads(q, k, v, heads), f"{name}.out_proj")

    def image(self, crops, camid):
        """Crops (B, T, 3, H, W) to tokens x (B, T, N, D) and xp (B, T, N, C)."""
        b, t = crops.shape[:2]
        kernel = self["image_encoder.conv1.weight"]
        x = F.conv2d(crops.flatten(0, 1), kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
        cls = self["image_encoder.class_embedding"].expand(b * t, 1, -1)
        if camid is not None:
            cls = cls + self["cv_embed"][camid].repeat_interleave(t, dim=0)[:, None]
        x = torch.cat([cls, x], dim=1) + self["image_encoder.positional_embedding"]
        x = self.norm(x, "image_encoder.ln_pre")
        count = sum(name.endswith(".mlp.c_fc.bias") for name in self.state)
        for n in range(count):
            block = f"image_encoder.transformer.resblocks.{n}"
            y = self.norm(x, f"{block}.ln_1")
            x = x + self.packed_attention(y, y, f"{block}.attn", self.image_heads)
            y = self.linear(self.norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
            x = x + self.linear(y * torch.sigmoid(1.702 * y), f"{block}.mlp.c_proj")
        x = self.norm(x, "image_encoder.ln_post")
        return x.unflatten(0, (b, t)), (x @ self["image_encoder.proj"]).unflatten(0, (b, t))

    def skeletons(self, skeleton, positions):
        """Skeletons (B, T, J, 3) to s (B, T, J, C)."""
        x = self.linear(F.relu(self.linear(skeleton, f"{GRAPH}.input_fc1")), f"{GRAPH}.input_fc2")
        x = x + self.linear(positions, f"{GRAPH}.pos_fc")
        count = sum(name.endswith(".qkv_proj.bias") for name in self.state)
        for n in range(count):
            block = f"{GRAPH}.transformer_blocks.{n}"
            q, k, v = self.linear(x, f"{block}.qkv_proj").chunk(3, dim=-1)
            y = self.linear(self.heads(q, k, v, HEADS, clamp=5), f"{block}.out_proj")
            x = self.norm(x + y, f"{block}.norm1")
            y = self.linear(F.relu(self.linear(x, f"{block}.ffn.0")), f"{block}.ffn.3")
            x = self.norm(x + y, f"{block}.norm2")
        return x @ self["skeleton_encoder.proj_ske"]

    def prototype_logits(self, p_s, p_v, v_bar, xp, s):
        gate = self.linear(F.relu(self.linear(torch.cat([p_s, p_v], dim=1), "PF.fc.0")), "PF.fc.2").sigmoid()
        p = gate * p_s + (1 - gate) * p_v
        memory = torch.cat([xp.mean(dim=1), s.mean(dim=1)], dim=1)
        memory = self.norm(memory, "VTU.memory_proj.0")
        memory = self.norm(self.linear(memory, "VTU.memory_proj.1"), "VTU.memory_proj.2")
        x = self.linear(self.norm(p, "VTU.text_proj.0"), "VTU.text_proj.1").expand(len(xp), -1, -1)
        for n in range(sum(name.endswith(".self_attn.q_proj.weight") for name in self.state)):
            layer = f"VTU.decoder.{n}"
            y = self.norm(x, f"{layer}.norm1")
            x = x + self.separate_attention(y, y, f"{layer}.self_attn")
            x = x + self.separate_attention(self.norm(x, f"{layer}.norm2"), memory, f"{layer}.cross_attn")
            y = self.linear(self.norm(x, f"{layer}.norm3"), f"{layer}.mlp.0")
            x = x + self.linear(y * torch.sigmoid(1.702 * y), f"{layer}.mlp.3")
        updated = p + self.linear(self.norm(x, "VTU.out_proj.0"), "VTU.out_proj.1")  # (B, K, C)
        return (updated * v_bar[:, None]).sum(dim=-1)

    def separate_attention(self, query, source, name):
        q = self.linear(query, f"{name}.q_proj")
        k, v = self.linear(source, f"{name}.k_proj"), self.linear(source, f"{name}.v_proj")
        return self.linear(self.heads(q, k, v, HEADS), f"{name}.proj")

    def temporal(self, x, s):
        """Tokens (B, T, N, D) and joints (B, T, J, C), or None as at test, to f (B, D) and f_t (B, T, D)."""
        kind = self["TMM.token_type_embed.weight"]
        m_v = self.linear(x.mean(dim=2), "TMM.msg_fc_vis")
        y = self.norm(m_v, "TMM.msg_ln_vis")
        m_v = m_v + self.packed_attention(y, y, "TMM.msg_attn_vis", HEADS)
        joints = []
        if s is not None:
            s = self.linear(s, "TMM.msg_fc_ske")
            m_s = s.mean(dim=2)
            y = self.norm(m_s, "TMM.msg_ln_ske")
            m_s = m_s + self.packed_attention(y, y, "TMM.msg_attn_ske", HEADS)
            y = self.norm(m_s, "TMM.norm_ske")
            m_v = m_v + self.packed_attention(self.norm(m_v, "TMM.norm_vis"), y, "TMM.cross_attn_ske_to_vis", HEADS)
            joints = [s + kind[2], m_s[:, :, None] + kind[3]]
        z = torch.cat([x + kind[0], m_v[:, :, None] + kind[1], *joints], dim=2)
        y = self.norm(z, "TMM.ln_1")
        z = z + self.packed_attention(y, y, "TMM.attention", HEADS)
        z = z + self.linear(F.gelu(self.linear(self.norm(z, "TMM.ln_2"), "TMM.mlp.0")), "TMM.mlp.3")
        weight = self.linear(z, "TMM.token_attn_score.0").sigmoid()
        f_t = (weight * z).sum(dim=2) / (weight.sum(dim=2) + 1e-6)
        return f_t.mean(dim=1), f_t

    def classify(self, x, norm, classifier):
        return self.linear(self.batch_norm(x, norm), classifier)


def expected(state, tower, crops, skeleton, camid, p_v, p_s):
    """Everything that training's losses and the test read, by the names of `TrainOutput`."""
    net = Published(state, tower.heads)
    positions = torch.from_numpy(LAYOUTS["h36m17"].graph_positions(10))
    x, xp = net.image(crops, camid)
    g, v_bar = x[:, :, 0].mean(dim=1), xp[:, :, 0].mean(dim=1)
    s = net.skeletons(skeleton, positions)
    f, f_t = net.temporal(x, s)
    frames = net.classify(f_t.flatten(0, 1), "bottleneck_proj_temp", "classifier_proj_temp")
    return {
        "g": g,
        "v_bar": v_bar,
        "f": f,
        "logits_g": net.classify(g, "bottleneck", "classifier"),
        "logits_v": net.classify(v_bar, "bottleneck_proj", "classifier_proj"),
        "logits_f": net.classify(f, "bottleneck_proj_temp2", "classifier_proj_temp"),
        "logits_frames": frames.unflatten(0, f_t.shape[:2]),
        "logits_prototypes": net.prototype_logits(p_s, p_v, v_bar, xp, s),
        "embedding": torch.cat([g, v_bar, net.temporal(x, None)[0]], dim=1),
        "frame_features": net.image(crops, None)[1][:, :, 0].flatten(0, 1),
        "s": s,
    }


# ------------------------------------------------------------------------------------------------------------ tests


def write(state, path):
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def state():
    return published_state(**SMALL)


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    return write(state, tmp_path_factory.mktemp("published") / "mars.pth")


def check_outputs(state, sizes, path, frames, tolerance):
    tower, c, people = sizes["tower"], sizes["c"], sizes["people"]
    network, spec, report = import_published(path, (tower,))
    torch.manual_seed(1)
    crops = torch.randn(2, frames, 3, tower.height, tower.width)
    skeleton, camid = torch.randn(2, frames, 17, 3), torch.tensor([sizes["cameras"] - 1, 0])
    p_v, p_s = torch.randn(people, c), torch.randn(people, c)
    network.set_prototypes(p_v, p_s)
    with torch.no_grad():
        wanted = expected(state, tower, crops, skeleton, camid, p_v, p_s)
        mask = torch.ones(2, frames, dtype=torch.bool)
        out = network(crops, skeleton, mask, camid)
        found = {name: getattr(out, name) for name in wanted if hasattr(out, name)}
        found["embedding"] = network.embed(crops, camid)
        found["frame_features"] = network.frame_features(crops.flatten(0, 1))
        found["s"] = network.skeleton_encoder(skeleton, mask)[0]
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert value.std() > 1e-3, f"{name} tells nothing"
        scale = float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance * max(scale, 1), msg=name)
    return spec, report


def test_an_imported_network_gives_what_the_published_layers_give(state, file):
    spec, report = check_outputs(state, SMALL, file, frames=3, tolerance=1e-5)
    assert (spec.model.image_depth, spec.model.image_width, spec.model.width) == (2, 32, 16)
    assert (spec.model.joint_layers, spec.model.prototype_layers, spec.model.graph_positions) == (2, 2, 10)
    assert (spec.layout, spec.prototypes, spec.temporal) == ("h36m17", "pfu", True)
    assert (spec.cameras, spec.pids) == (("camera-0", "camera-1", "camera-2"), (0, 1, 2, 3, 4))
    assert (spec.clip.height, spec.clip.width) == (32, 16)
    assert set(report.unused) == UNUSED
    assert report.placed == len(state) - len(UNUSED)
    assert set(report.kept) == set(KEPT)


def test_two_biases_whose_sum_alone_is_seen_stand_in_their_own_places(state, file):
    encoder = import_published(file, (TINY,))[0].skeleton_encoder
    assert torch.equal(encoder.embed_joint[2].bias, state[f"{GRAPH}.input_fc2.bias"])
    assert torch.equal(encoder.embed_position.bias, state[f"{GRAPH}.pos_fc.bias"])


def test_the_reference_clamps_and_so_must_we(state):
    # Else the comparison above would not see a missing clamp.
    net, seen = Published(state, 4), []
    plain = Published.heads

    def heads(q, k, v, count, clamp=None):
        if clamp:
            split = [x.unflatten(-1, (count, -1)).transpose(-3, -2) for x in (q, k)]
            seen.append(float((split[0] @ split[1].transpose(-2, -1) / math.sqrt(split[0].shape[-1])).abs().max()))
        return plain(q, k, v, count, clamp)

    net.heads = heads
    torch.manual_seed(1)
    net.skeletons(torch.randn(2, 3, 17, 3), torch.from_numpy(LAYOUTS["h36m17"].graph_positions(10)))
    assert max(seen) > 5


@pytest.mark.slow
def test_a_network_of_the_true_size_gives_what_the_published_layers_give(tmp_path):
    state = published_state(**TRUE)
    spec, report = check_outputs(state, TRUE, write(state, tmp_path / "mars.pth"), frames=2, tolerance=1e-4)
    assert (spec.model.image_encoder, spec.model.image_heads) == ("vit_base_patch16_clip_quickgelu_224.openai", 12)
    assert (spec.clip.height, spec.clip.width, len(spec.pids), len(spec.cameras)) == (256, 128, 625, 6)
    assert set(report.unused) == UNUSED


def same_network(one, two):
    own, other = one.state_dict(), two.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)


@pytest.mark.parametrize(
    "dress",
    [
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": state, "epoch": 80},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 80},
        lambda state: nn.ParameterDict({}).state_dict() | state,
        lambda state: {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")},
        lambda state: {n: v for n, v in state.items() if not any(n == u for u in UNUSED)},
    ],
    ids=["module", "state_dict", "model", "ordered", "old batch norm", "without the unused"],
)
def test_a_file_is_read_in_every_dress_it_comes_in(state, file, tmp_path, dress):
    network = import_published(file, (TINY,))[0]
    again = import_published(write(dress(state), tmp_path / "dressed.pt"), (TINY,))[0]
    for norm in (network.head_g.norm, network.head_v.norm, network.head_f.norm_clip, network.head_f.norm_frames):
        norm.num_batches_tracked.zero_()
    for norm in (again.head_g.norm, again.head_v.norm, again.head_f.norm_clip, again.head_f.norm_frames):
        norm.num_batches_tracked.zero_()
    assert same_network(network, again)


def without(state, *prefixes):
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


def test_parts_that_a_file_lacks_altogether_are_left_out(state, tmp_path):
    temporal = ("TMM.", "classifier_proj_temp.", "bottleneck_proj_temp")
    rest = without(state, "PF.", "VTU.", "cv_embed", *temporal)
    network, spec, _ = import_published(write(rest, tmp_path / "bare.pth"), (TINY,))
    assert (spec.prototypes, spec.temporal, spec.cameras, spec.model.camera_embedding) == ("none", False, (), False)
    assert network.prototype_updater is None
    assert network.temporal is None
    spec = import_published(write(without(state, "VTU."), tmp_path / "gate.pth"), (TINY,))[1]
    assert spec.prototypes == "gate"


def change(name, value):
    return lambda state: state | {name: value}


@pytest.mark.parametrize(
    ("alter", "told"),
    [
        (lambda s: without(s, "TMM.ln_2.bias"), r"1 missing: TMM\.ln_2\.bias"),
        (lambda s: without(s, "PF."), r"4 missing: PF\.fc\.0\.bias, PF\.fc\.0\.weight"),
        (lambda s: without(s, f"{GRAPH}.transformer_blocks.0."), r"12 missing: .*transformer_blocks\.0\.ffn\.0\.bias"),
        (lambda s: without(s, "bottleneck.running_var"), r"1 missing: bottleneck\.running_var"),
        (lambda s: without(s, "TMM."), r"left over: bottleneck_proj_temp\.bias"),
        (change("VTU.beta", torch.zeros(1)), r"1 left over: VTU\.beta"),
        (change("VTU.normal.weight", torch.zeros(1)), r"1 left over: VTU\.normal\.weight"),
        (change("module.cv_embed", torch.zeros(3, 32)), r"1 left over: module\.cv_embed"),
        (change("TMM.msg_fc_ske.weight", torch.zeros(32, 24)), r"TMM\.msg_fc_ske\.weight \(32, 24\) for \(32, 16\)"),
        (change("skeleton_encoder.proj_ske", torch.zeros(16, 12)), r"proj_ske \(16, 12\) for \(16, 16\)"),
        (change("image_encoder.class_embedding", torch.zeros(31)), r"class_embedding \(31,\) for \(32,\)"),
        (change("classifier_proj.weight", torch.zeros(6, 16)), r"classifier_proj\.weight \(6, 16\) for \(5, 16\)"),
        (change("cv_embed", torch.zeros(3, 16)), r"cv_embed \(3, 16\) for \(3, 32\)"),
        (change("VTU.alpha", torch.tensor([math.nan])), r"NaN or infinite values in 1 tensors: VTU\.alpha"),
        (change("image_encoder.positional_embedding", torch.zeros(4, 32)), r"and 4 tokens; expected width 32, 2 bl"),
        (change("image_encoder.conv1.weight", torch.zeros(32, 3, 8, 8)), r"patches 8x8 and 3 tokens; expected width"),
        (lambda s: without(s, "image_encoder.transformer.resblocks.1."), r"found an image encoder of width 32, 1 blo"),
        (lambda s: without(s, "image_encoder."), r"found none among \d+ tensors .*expected 'image_encoder\.conv1"),
        (change("classifier.weight", torch.zeros(5)), r"found one of shape \(5,\) among .*expected 'classifier\.weig"),
        (change("image_encoder.proj", torch.zeros(32, 12)), r"cannot be built: .*joint_heads: got 8, expected a div"),
        (lambda s: without(s, f"{GRAPH}.transformer_blocks."), r"cannot be built: .*joint_layers: got 0"),
        (change(f"{GRAPH}.pos_fc.weight", torch.zeros(16, 17)), r"cannot be built: graph_positions: got 17"),
        (lambda s: {}, r"found the entries , expected tensors by name"),
        (lambda s: {"epoch": 3, "optimizer": {}}, r"found the entries epoch, optimizer, expected tensors by name"),
        (lambda s: list(s.values()), r"found a list, expected tensors by name"),
        (lambda s: s | {"epoch": 3}, r"expected tensors by name, as they are or under 'state_dict' or 'model'"),
    ],
)
def test_a_file_of_other_tensors_is_refused_with_their_names(state, tmp_path, monkeypatch, alter, told):
    monkeypatch.setattr(published, "TOWERS", (TINY,))
    path, store = write(alter(state), tmp_path / "other.pth"), tmp_path / "store"
    with pytest.raises(CheckpointError, match=rf"(?s)^Checkpoint {re.escape(str(path))}: .*{told}"):
        import_checkpoint(path, str(store))
    assert not store.exists()


def test_the_published_sizes_are_named_when_others_are_found(file):
    told = r"width 32, 2 blocks, patches 16x16 and 3 tokens; expected width 768, 12 blocks, .* 129 tokens \(256x128 pix"
    with pytest.raises(CheckpointError, match=told):
        import_published(file)


class Code:
    """A pickle of it runs what it says."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def text_file(path, _):
    path.write_text("epoch,loss\n1,0.5\n" * 20)


def pickled_code(path, target):
    path.write_bytes(pickle.dumps({"state_dict": Code(target)}, protocol=2))


def saved_code(path, target):
    torch.save({"state_dict": {"x": torch.zeros(1)}, "args": Code(target)}, path)


def saved_module(path, _):
    torch.save(nn.Sequential(nn.Linear(2, 2)), path)


def cut_file(path, _):
    torch.save({"x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1500])


def empty_file(path, _):
    path.touch()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (text_file, "IndexError"),
        (pickled_code, r"it asks for posix\.mkdir"),
        (saved_code, r"it asks for posix\.mkdir"),
        (saved_module, r"it asks for torch\.nn\.modules\.container\.Sequential"),
        (cut_file, "failed finding central directory"),
        (empty_file, "EOFError"),
    ],
)
def test_a_file_that_is_no_state_dict_is_refused_and_nothing_in_it_is_run(tmp_path, make, told):
    path, target, store = tmp_path / "file.pth", tmp_path / "made-by-the-file", tmp_path / "store"
    make(path, target)
    # As ultralytics does for its own layers, once it opened pose weights in this process.
    with (
        torch.serialization.safe_globals([nn.Sequential, nn.Linear]),
        pytest.raises(
            CheckpointError, match=rf"file\.pth: found .* plain tensors, and ran none of it \(.*{told}.*\)"
        ) as caught,
    ):
        import_checkpoint(path, str(store))
    assert "weights_only" not in str(caught.value), "torch's advice to run the file is not passed on"
    assert "Expected a .pth or .pt file that torch.save wrote of a state dict" in str(caught.value)
    assert not target.exists()
    assert not store.exists()


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.pth: found no such file\. Name a \.pth or \.pt file"):
        import_checkpoint(tmp_path / "gone.pth", str(tmp_path / "store"))


def test_an_import_leaves_a_checkpoint_and_a_run_that_leads_back_to_the_file(file, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "TOWERS", (TINY,))
    store = str(tmp_path / "store")
    ref, spec, report = import_checkpoint(file, store)
    assert Path(ref.path) == tmp_path / "store" / "checkpoints" / f"imported-{ref.sha256[:12]}.safetensors"
    loaded, header = load_checkpoint(ref)
    assert same_network(loaded, import_published(file)[0])
    assert not bool(loaded.prototypes_ready)
    assert (header.stage, header.spec) == ("imported", spec)
    (run,) = tables.find_runs(store, "true")
    assert (run.stage, run.weights) == ("import_checkpoint", {"mars.pth": report.sha256})
    assert set(run.counts["unused"]) == UNUSED
    node = History(store).find(ref.path)
    assert (node.kind, node.made_by.run_id) == ("checkpoint", run.run_id)
    assert [(n.kind, n.name, n.facts["path"]) for n in node.sources] == [("file", report.sha256, str(file))]
    # The file again gives the same checkpoint.
    assert import_checkpoint(file, store)[0] == ref
    json.dumps(run.counts)
