"""Which device does the work."""

from __future__ import annotations

import torch

from csip import ranks
from csip.errors import CsipError


def resolve_device(name: str) -> str:
    """Turn "auto" into a CUDA device where there is one, else the CPU; check any other name.

    Of several processes on a machine each takes the CUDA device of its own number, as "cuda" does too.

    Raises:
        CsipError: the device does not exist on this machine.
        ValueError: the name is no device name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"runtime.device: got {name!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:N'.") from error
    if device.type != "cuda":
        return name
    index = ranks.local_rank() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise CsipError(
            f"runtime.device: got {name!r}, which is device {index} here, but torch finds {torch.cuda.device_count()} "
            "CUDA devices. Use --set runtime.device=auto and no more runtime.processes than devices, or install a "
            "driver and a CUDA build of torch."
        )
    return f"cuda:{index}"


def device_uuid(device: str) -> str:
    """Give what tells a CUDA device from all others, whatever number it has in this process; empty: nothing does."""
    if not device.startswith("cuda:") or not torch.cuda.is_available():
        return ""
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))


def list_devices(name: str) -> list[str]:
    """List the devices of this machine that a setting leaves the choice of: all CUDA devices, or the one it names.

    Raises:
        CsipError: the device does not exist on this machine.
        ValueError: the name is no device name.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [resolve_device(name)]
