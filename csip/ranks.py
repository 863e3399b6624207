"""Training in several processes: who this one is, and sums and gathers over all of them that carry gradients.

Every process (rank) works on its share of a batch and computes its share of the loss; the shares sum to the loss of the
whole batch, and so do their gradients. Without `torchrun`, or with one process, everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

# Gradients travel in pieces of this many numbers.
_BUCKET = 25_000_000


@contextmanager
def joined() -> Iterator[None]:
    """Join the group of processes that torchrun's environment names, while the block runs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def size() -> int:
    """Count the processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def local_rank() -> int:
    """Number this process among those on this machine, from 0; it takes the device of that number."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def any_rank(flag: bool) -> bool:
    """Tell whether the flag is set in any process; all of them must ask."""
    if size() == 1:
        return flag
    told = torch.tensor(int(flag))
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)


def total_count(count: int) -> int:
    """Sum a whole number over the processes."""
    if size() == 1:
        return count
    told = torch.tensor(count)
    dist.all_reduce(told)
    return int(told)


def total(values: Tensor) -> Tensor:
    """Sum a tensor over the processes, without gradient."""
    if size() == 1:
        return values.detach()
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed


def from_first(values: Tensor) -> Tensor:
    """Give every process what the first one has."""
    if size() > 1:
        dist.broadcast(values, 0)
    return values


def text_from_first(text: str) -> str:
    """Give every process the text, not empty, that the first one has; all of them must ask."""
    return _text_from(0, text)


def text_from_each(text: str) -> list[str]:
    """Give every process the texts, not empty, of all, in the order of their ranks; all of them must ask."""
    return [_text_from(number, text) for number in range(size())]


def _text_from(number: int, text: str) -> str:
    if size() == 1:
        return text
    content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    length = torch.tensor(len(content))
    dist.broadcast(length, number)
    received = content if rank() == number else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(received, number)
    return bytes(received.numpy()).decode()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over the processes; the gradient flows back into every share."""
    return values if size() == 1 else cast("Tensor", _Sum.apply(values))


def gather(values: Tensor) -> Tensor:
    """Join the processes' (n, ...) along the first axis, in the order of their ranks; n may differ.

    A process's gradient is the sum of what all of them send back for its rows.
    """
    return values if size() == 1 else cast("Tensor", _Gather.apply(values))


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum every gradient over the processes, in place. A parameter without one must be without one everywhere."""
    if size() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    begin = 0
    while begin < len(grads):
        end, length = begin, 0
        while end < len(grads) and (end == begin or length + grads[end].numel() <= _BUCKET):
            length += grads[end].numel()
            end += 1
        flat = torch.cat([grad.reshape(-1) for grad in grads[begin:end]])
        dist.all_reduce(flat)
        pieces = torch.split(flat, [grad.numel() for grad in grads[begin:end]])
        for grad, summed in zip(grads[begin:end], pieces, strict=True):
            grad.copy_(summed.view_as(grad))
        begin = end


class _Sum(torch.autograd.Function):
    """All-reduce forward, all-reduce backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return total(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return total(grad)


class _Gather(torch.autograd.Function):
    """All-gather of unequal lengths; backward sums the gradients and cuts this process's rows out."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        lengths = [torch.zeros((), dtype=torch.int64) for _ in range(size())]
        dist.all_gather(lengths, torch.tensor(len(values)))
        counts = [int(length) for length in lengths]
        ctx.begin, ctx.count = sum(counts[: rank()]), len(values)
        padded = values.new_zeros(max(counts), *values.shape[1:])
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return total(grad)[ctx.begin : ctx.begin + ctx.count]
