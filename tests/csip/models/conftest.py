"""Slow references: the same mathematics in loops over plain vectors, nothing shared with the code under test."""

import math
from types import SimpleNamespace

import pytest
import torch


def linear(x, layer):
    """One vector through a linear layer."""
    out = torch.stack([(row * x).sum() for row in layer.weight])
    return out if layer.bias is None else out + layer.bias


def norm(x, layer):
    """One vector through a LayerNorm."""
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + layer.eps) * layer.weight + layer.bias


def attend(queries, keys, values, heads, *, keep=None, clamp=None):
    """Multi-head attention over lists of projected vectors; returns a list, before the output projection."""
    dim = len(queries[0]) // heads
    out = []
    for q in queries:
        parts = []
        for h in range(heads):
            piece = slice(h * dim, (h + 1) * dim)
            logits = [float((q[piece] * k[piece]).sum()) / math.sqrt(dim) for k in keys]
            if clamp is not None:
                logits = [max(-clamp, min(clamp, value)) for value in logits]
            weights = [math.exp(value) if keep is None or keep[i] else 0.0 for i, value in enumerate(logits)]
            total = sum(weights)
            parts.append(sum(w / total * v[piece] for w, v in zip(weights, values, strict=True)))
        out.append(torch.cat(parts))
    return out


def torch_attention(layer, queries, source, *, keep=None):
    """What `nn.MultiheadAttention` computes, from its packed weights."""
    d = layer.embed_dim
    pieces = [
        SimpleNamespace(weight=layer.in_proj_weight[i * d : (i + 1) * d], bias=layer.in_proj_bias[i * d : (i + 1) * d])
        for i in range(3)
    ]
    q = [linear(x, pieces[0]) for x in queries]
    k, v = ([linear(x, piece) for x in source] for piece in pieces[1:])
    return [linear(x, layer.out_proj) for x in attend(q, k, v, layer.num_heads, keep=keep)]


@pytest.fixture
def slow():
    return SimpleNamespace(linear=linear, norm=norm, attend=attend, torch_attention=torch_attention)


def shake(module):
    """Give every parameter and buffer of `module` a value of its own, so that no test leans on an init of 0 or 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.fixture(name="shake")
def _shake():
    return shake
