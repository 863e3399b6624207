"""What a look at a store finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["fault", "leftover"]
"""A fault is something that a store names and does not have, or that contradicts itself; a leftover is something that
nothing names."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: whether it is wrong or only in the way.
        snapshot: whose it is; empty for the store's.
        where: the table, file or run.
        text: what was found, what was expected, and how many there are.
    """

    kind: Kind
    snapshot: str
    where: str
    text: str
