"""Learning rates as functions of the epoch, and the paper's parameter groups."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from csip.config import PretrainConfig, Stage1Config, Stage2Config
from csip.models.reid import CsipReID


def pretrain_rate(progress: float, config: PretrainConfig) -> float:
    """Rate at a share 0..1 of the training: a linear warm-up over the first tenth, then a cosine to zero."""
    if progress < 0.1:
        return config.learning_rate * (0.1 + 9 * progress)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


def stage1_rate(epoch: int, config: Stage1Config) -> float:
    """Rate of epoch 1..epochs (method.md section 3): constant within the epoch.

    A linear warm-up, then a cosine whose phase counts from epoch 0, not from the end of the warm-up.
    """
    if epoch < config.warmup_epochs:
        return config.warmup_rate + epoch * (config.learning_rate - config.warmup_rate) / config.warmup_epochs
    if epoch >= config.epochs:
        return config.final_rate
    fall = (1 + math.cos(math.pi * epoch / config.epochs)) / 2
    return config.final_rate + (config.learning_rate - config.final_rate) * fall


def stage2_factor(epoch: int, config: Stage2Config) -> float:
    """Factor of every rate in epoch 1..epochs (method.md section 4): warm-up from a tenth, then steps down by ten."""
    warmup = config.warmup_epochs
    rise = 0.1 + 0.9 * epoch / warmup if epoch < warmup else 1.0
    return rise * 0.1 ** sum(milestone <= epoch for milestone in config.milestones)


def stage2_groups(model: CsipReID, config: Stage2Config) -> list[dict[str, object]]:
    """Sort trainable parameters into Adam groups by rate: biases, and SGTM, its classifier and PFU; factors multiply.

    Each group carries its epoch-independent rate as `base_rate`.
    """
    heads = ("temporal.", "head_f.classifier.", "prototype_updater.")
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = config.learning_rate
        if name.endswith("bias"):
            rate *= config.bias_factor
        if name.startswith(heads):
            rate *= config.head_factor
        groups.setdefault(rate, []).append(parameter)
    return [{"params": groups[rate], "lr": rate, "base_rate": rate} for rate in sorted(groups)]


def adam(groups: Iterable[nn.Parameter] | list[dict[str, object]], *, weight_decay: float) -> torch.optim.Adam:
    """Make torch's Adam, whose weight decay is coupled L2, as the published recipes use it."""
    return torch.optim.Adam(groups, lr=0.0, weight_decay=weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def scale_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its own base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step down the gradient of `loss`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
