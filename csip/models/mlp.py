"""A transformer's MLP that keeps its input and nothing else for the backward pass.

PyTorch's own chain keeps three or four tensors of the hidden width: 60 % of what a ViT-B/16 holds at a time, and in the
forward pass memory not touched before costs more than arithmetic. Computing the hidden layer a second time adds a
sixth to the MLP's arithmetic.

Shapes: M rows, D input width, E hidden width, O output width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# QuickGELU(x) = x sigmoid(a x) = SiLU(a x) / a, and PyTorch has SiLU and its derivative as one pass each.
_QUICK = 1.702

# Rows whose hidden layer exists at a time. Larger tensors than this gives (25 MB at E = 3072) glibc takes from the
# kernel and hands back every time.
_ROWS = 2048


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply x sigmoid(1.702 x) elementwise."""
        return F.silu(_QUICK * x) / _QUICK


class Mlp(nn.Sequential):
    """Linear, GELU or QuickGELU, dropout, linear, and whatever follows, under the names `nn.Sequential` gives them.

    Computes what `nn.Sequential` would, but the hidden layer a second time in the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply to (..., D), to get (..., O)."""
        up, activation, dropout, down, *rest = self
        given: list[Any] = [x.flatten(0, -2), up.weight, up.bias, down.weight, down.bias]
        if torch.is_autocast_enabled(x.device.type):
            # Inside the function below every tensor has one type, in both directions.
            given = [one.to(torch.get_autocast_dtype(x.device.type)) for one in given]
        drop = dropout.p if self.training else 0.0
        out: Tensor = _Mlp.apply(*given, isinstance(activation, QuickGELU), drop)
        out = out.reshape(*x.shape[:-1], -1)
        for module in rest:
            out = module(out)
        return out


class _Mlp(torch.autograd.Function):
    """Rows (M, D) to (M, O); weights (E, D) and (O, E), biases (E,) and (O,)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_up: Tensor, b_up: Tensor, w_down: Tensor, b_down: Tensor, quick: bool, drop: float
    ) -> Tensor:
        """Keep the arguments, and what dropout left, a byte an element."""
        keep = torch.empty(len(x), len(w_up), dtype=torch.bool, device=x.device).bernoulli_(1 - drop) if drop else None
        ctx.save_for_backward(x, w_up, b_up, w_down, keep)
        ctx.quick, ctx.drop = quick, drop
        out = x.new_empty(len(x), len(w_down))
        for rows in _chunks(len(x)):
            hidden = _activate(F.linear(x[rows], w_up, b_up), quick)  # (rows, E)
            out[rows] = F.linear(_drop(hidden, keep, rows, drop), w_down, b_down)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Turn the gradient of the output (M, O) into those of the five tensors."""
        x, w_up, b_up, w_down, keep = ctx.saved_tensors
        need_x, need_up, need_bias_up, need_down, need_bias_down, *_ = ctx.needs_input_grad
        grad_x = torch.empty_like(x) if need_x else None
        # Summed over the rows in float32 at least.
        dtype = torch.promote_types(x.dtype, torch.float32)
        grad_up, grad_bias_up, grad_down = (
            torch.zeros_like(one, dtype=dtype) if need else None
            for one, need in ((w_up, need_up), (b_up, need_bias_up), (w_down, need_down))
        )
        for rows in _chunks(len(x)):
            before = F.linear(x[rows], w_up, b_up)  # (rows, E)
            if grad_down is not None:
                grad_down += grad[rows].T @ _drop(_activate(before.clone(), ctx.quick), keep, rows, ctx.drop)
            slope = _drop(grad[rows] @ w_down, keep, rows, ctx.drop)
            if ctx.quick:
                slope = torch.ops.aten.silu_backward(slope, before.mul_(_QUICK))
            else:
                slope = torch.ops.aten.gelu_backward(slope, before)
            if grad_up is not None:
                grad_up += slope.T @ x[rows]
            if grad_bias_up is not None:
                grad_bias_up += slope.sum(dim=0)
            if grad_x is not None:
                grad_x[rows] = slope @ w_up
        grad_bias_down = grad.sum(dim=0) if need_bias_down else None
        return grad_x, grad_up, grad_bias_up, grad_down, grad_bias_down, None, None


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, count, _ROWS)]


def _activate(x: Tensor, quick: bool) -> Tensor:
    """Activate in place where there is a way."""
    return F.silu(x.mul_(_QUICK), inplace=True).div_(_QUICK) if quick else F.gelu(x)


def _drop(x: Tensor, keep: Tensor | None, rows: slice, drop: float) -> Tensor:
    """Put to zero in place what is not kept, and scale the rest."""
    return x if keep is None else x.mul_(keep[rows]).div_(1 - drop)
