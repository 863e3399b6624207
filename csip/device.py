"""Which device does the work."""

from __future__ import annotations

import torch

from csip.errors import CsipError


def resolve_device(name: str) -> str:
    """Turn "auto" into the first CUDA device where there is one, else the CPU; check any other name.

    Raises:
        CsipError: the device does not exist on this machine.
        ValueError: the name is no device name.
    """
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"runtime.device: got {name!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:N'.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CsipError(
            f"runtime.device: got {name!r}, but torch finds {torch.cuda.device_count()} CUDA devices here. "
            "Use --set runtime.device=auto, or install a driver and a CUDA build of torch."
        )
    return f"cuda:{device.index or 0}" if device.type == "cuda" else name
