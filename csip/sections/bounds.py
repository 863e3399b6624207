"""What all sections check their numbers with."""

from __future__ import annotations

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid")
MANY = float("inf")


def in_range(section: object, **bounds: tuple[float, float]) -> None:
    """Check that fields lie in closed ranges; name the section, the field, the value and the range."""
    for name, (low, high) in bounds.items():
        value = getattr(section, name)
        if not low <= value <= high:
            raise ValueError(f"{type(section).__name__}.{name}: got {value}, expected {low} to {high}.")
