"""What the fields of a section may hold, written once beside each field.

`check` refuses what lies outside, and names the section, the field, the value and what was expected. A JSON schema of
the section says the same, so that forms show it and Prefect's server refuses it before there is a run.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, get_type_hints, runtime_checkable

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid")
MANY = float("inf")


@runtime_checkable
class Bound(Protocol):
    """What stands in a field's annotation."""

    @property
    def expected(self) -> str:
        """The words for it."""

    def admits(self, value: Any) -> bool:
        """Tell whether a field may have this value."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        """Say it in the field's JSON schema; pydantic asks for this by its name."""


@dataclass(frozen=True, slots=True)
class Within:
    """A number from `low` to `high`, both included; with `or_zero`, 0 too, which then has a meaning of its own."""

    low: float
    high: float
    or_zero: bool = False

    @property
    def expected(self) -> str:
        """The words for it."""
        return f"{self.low} to {self.high}"

    def admits(self, value: Any) -> bool:
        """Tell whether a field may have this value."""
        return self.low <= value <= self.high or (self.or_zero and value == 0)

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        """Say it in the field's JSON schema."""
        if self.or_zero:
            gap = {"exclusiveMinimum": 0, "exclusiveMaximum": self.low}
            return {**handler(core), **_limits(0, self.high), "not": gap}
        return {**handler(core), **_limits(self.low, self.high)}


@dataclass(frozen=True, slots=True)
class Each:
    """Several numbers, in tuples of tuples too.

    Attributes:
        expected: the words for it.
        low: each is this or more,
        above: or more than this.
        high: and this or less.
        count: how many they are, least and most.
        ascending: none is smaller than the one before; the one thing that a JSON schema cannot say.
        distinct: no two are the same.
    """

    expected: str
    low: float = -MANY
    above: float = -MANY
    high: float = MANY
    count: tuple[int, float] = (0, MANY)
    ascending: bool = False
    distinct: bool = False

    def admits(self, value: Any) -> bool:
        """Tell whether a field may have this value."""
        numbers = list(_flat(value))
        return (
            self.count[0] <= len(numbers) <= self.count[1]
            and all(self.low <= one <= self.high and self.above < one for one in numbers)
            and (not self.ascending or numbers == sorted(numbers))
            and (not self.distinct or len(numbers) == len(set(numbers)))
        )

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        """Say it in the field's JSON schema."""
        above = {"exclusiveMinimum": self.above} if self.above > -MANY else {}
        said = _at_numbers(handler(core), _limits(self.low, self.high) | above)
        if self.count[0]:
            said["minItems"] = self.count[0]
        if self.distinct:
            said["uniqueItems"] = True
        return said


@dataclass(frozen=True, slots=True)
class Spelt:
    """Text that a pattern matches as a whole."""

    pattern: str
    expected: str

    def admits(self, value: Any) -> bool:
        """Tell whether a field may have this value."""
        return re.fullmatch(self.pattern, value) is not None

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        """Say it in the field's JSON schema."""
        return {**handler(core), "pattern": f"^({self.pattern})$"}


def check(section: Any) -> None:
    """Check every field of a section.

    Raises:
        ValueError: one holds what it may not.
    """
    for name, bound in _bounds(section.__class__).items():
        value = getattr(section, name)
        if not bound.admits(value):
            raise ValueError(f"{type(section).__name__}.{name}: got {value!r}, expected {bound.expected}.")


@functools.cache
def _bounds(section: type[Any]) -> Mapping[str, Bound]:
    """Collect the bounds of a section's fields from their annotations."""
    hints = get_type_hints(section, include_extras=True)
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: one for name, found in marks.items() for one in found if isinstance(one, Bound)}


def _flat(value: Any) -> Iterator[float]:
    for one in value:
        if isinstance(one, tuple | list):
            yield from _flat(one)
        else:
            yield one


def _limits(low: float, high: float) -> dict[str, Any]:
    """Write limits in the words of JSON schemas, which know no infinity."""
    return ({"minimum": low} if low > -MANY else {}) | ({"maximum": high} if high < MANY else {})


def _at_numbers(schema: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    """Put limits at the numbers of a schema of arrays."""
    if schema.get("type") != "array":
        return {**schema, **limits}
    changed = dict(schema)
    if "items" in changed:
        changed["items"] = _at_numbers(changed["items"], limits)
    if "prefixItems" in changed:
        changed["prefixItems"] = [_at_numbers(one, limits) for one in changed["prefixItems"]]
    return changed
