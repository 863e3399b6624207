"""Learning rates as functions of the epoch, the paper's parameter groups, and the steps themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from csip import ranks
from csip.config import Precision, PretrainConfig, Stage1Config, Stage2Config
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


class Adam:
    """torch's Adam, whose weight decay is coupled L2, with accumulation, mixed precision and several processes.

    Args:
        groups: parameters, or groups of them that carry their `base_rate`.
        weight_decay: coupled L2, on every parameter.
        device: where they are.
        precision: of the forward pass on CUDA; a CPU computes in float32.
        accumulate: batches whose mean gradient makes one step.
    """

    def __init__(
        self,
        groups: Iterable[nn.Parameter] | list[dict[str, object]],
        *,
        weight_decay: float,
        device: str,
        precision: Precision,
        accumulate: int = 1,
    ) -> None:
        self._adam = torch.optim.Adam(groups, lr=0.0, weight_decay=weight_decay)
        self._accumulate, self._pending = accumulate, 0
        self._kind = torch.device(device).type
        self._dtype = _dtype(precision) if self._kind == "cuda" else torch.float32
        self._scaler = torch.amp.GradScaler(self._kind, enabled=self._dtype is torch.float16)

    def forward_precision(self) -> torch.autocast:
        """Give the context that the forward pass belongs in."""
        return torch.autocast(self._kind, dtype=self._dtype, enabled=self._dtype is not torch.float32)

    def set_rate(self, rate: float) -> None:
        """Give every group the same rate."""
        for group in self._adam.param_groups:
            group["lr"] = rate

    def scale_rates(self, factor: float) -> None:
        """Give every group its own base rate times `factor`."""
        for group in self._adam.param_groups:
            group["lr"] = group["base_rate"] * factor

    def step(self, loss: Tensor, *, last: bool = False) -> None:
        """Add the gradient of `loss`, and take a step down when enough batches are together.

        Args:
            loss: this process's share.
            last: of the epoch: what is together makes a step, however little.
        """
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._pending += 1
        if self._pending >= self._accumulate or last:
            self.flush()

    def flush(self) -> None:
        """Take a step with what is together, if there is anything."""
        if not self._pending:
            return
        parameters = [p for group in self._adam.param_groups for p in group["params"]]
        if self._pending > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(self._pending)
        ranks.sum_gradients(parameters)
        self._scaler.step(self._adam)
        self._scaler.update()
        self._adam.zero_grad(set_to_none=True)
        self._pending = 0

    def state(self, names: Mapping[str, nn.Parameter]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Give all there is to save: plain values, and tensors by their parameter's name.

        Gradients that wait for a step are those of every process, (processes, ...): all of them must ask.

        Args:
            names: the network's parameters by name.
        """
        tensors = {}
        for name, parameter in names.items():
            for key, value in self._adam.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
            if self._pending and parameter.grad is not None:
                tensors[f"gradient.{name}"] = ranks.gather(parameter.grad[None])
        return {"pending": self._pending, "scaler": self._scaler.state_dict()}, tensors

    def load(self, names: Mapping[str, nn.Parameter], plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave.

        Raises:
            KeyError: a tensor is missing.
            ValueError: a tensor has another shape than its parameter.
        """
        mine = {id(p) for group in self._adam.param_groups for p in group["params"]}
        for name, parameter in names.items():
            if f"gradient.{name}" in tensors:
                parameter.grad = tensors[f"gradient.{name}"][ranks.rank()].to(parameter.device)
            if id(parameter) not in mine or f"step.{name}" not in tensors:
                continue
            moments = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
            if any(value.shape != parameter.shape for value in moments.values()):
                raise ValueError(f"the optimizer's moments of {name} have another shape than {tuple(parameter.shape)}")
            on_device = {key: value.to(parameter.device) for key, value in moments.items()}
            self._adam.state[parameter] = {"step": tensors[f"step.{name}"], **on_device}
        self._pending = int(plain["pending"])
        self._scaler.load_state_dict(dict(plain["scaler"]))


def _dtype(precision: Precision) -> torch.dtype:
    names = {"auto": torch.float16, "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    return names[precision]
