"""Are the newest versions of all tables whole, with keys that are known as such, and none of them twice?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from csip import tables
from csip.errors import SchemaMismatchError, StoreError
from csip.maintenance import keys
from csip.maintenance.files import tell_damage
from csip.maintenance.findings import Finding
from csip.types import TableRef
from storage_schemas import TABLES
from storage_schemas.fields import key_names


@dataclass(slots=True)
class Newest:
    """The newest versions.

    Attributes:
        refs: table -> version, of those that can be read.
        found: what is wrong.
    """

    refs: dict[str, TableRef] = field(default_factory=dict)
    found: list[Finding] = field(default_factory=list)

    def say(self, table: str, text: str) -> None:
        """Note a fault."""
        self.found.append(Finding("fault", "", table, text))


def check_newest(store: str, files: dict[str, str], told: Collection[tuple[str, int]]) -> Newest:
    """Open all files of every table's newest version, and read all of its keys.

    Args:
        store: the store's folder.
        files: as for `tables.damaged_files`.
        told: tables and versions of which a fault has been told; it is not told again.
    """
    newest = Newest()
    for name in TABLES:
        try:
            ref = tables.current(store, name)
        except StoreError as error:
            newest.say(name, str(error))
            continue
        problems = _problems(newest, name, ref, files)
        if (name, ref.version) not in told:
            for problem in problems:
                newest.say(name, problem)
    return newest


def _problems(newest: Newest, name: str, ref: TableRef, files: dict[str, str]) -> list[str]:
    """Say what is wrong with a table's newest version, and take it for one that can be read if it can."""
    problems = []
    try:
        damaged = tables.damaged_files(ref, files)
        if damaged:
            return [tell_damage(damaged)]
        keyless, repeated = _read_keys(name, ref)
    except StoreError as error:
        return [str(error)]
    newest.refs[name] = ref
    try:
        tables.check_keys_of(ref)
    except SchemaMismatchError as error:
        problems.append(str(error))
    if keyless:
        problems.append(f"{keyless} rows have no key: expected {', '.join(key_names(TABLES[name]))} in all of them.")
    if repeated:
        problems.append(f"{len(repeated)} keys stand in several rows: {keys.shorten(repeated)}.")
    return problems


def _read_keys(name: str, ref: TableRef) -> tuple[int, list[str]]:
    """Count the rows without a key, and name the keys that several others have.

    One column of a key becomes a number in 34 bits: the frame, of which there are many, or else the last one, whose
    values are few and come again and again. The others make the name.
    """
    columns = key_names(TABLES[name])
    frames = [one for one in columns if pa.types.is_integer(TABLES[name].field(one).type)]
    counted = (frames or columns)[0 if frames else -1]
    words = [one for one in columns if one != counted]
    numbers, values, parts, keyless = keys.Numbers(), keys.Numbers(), [], 0
    for batch in tables.stream(ref, columns):
        rows = batch.drop_null()
        keyless += len(batch) - len(rows)
        text = {one: pc.cast(rows.column(one), pa.string()) for one in words} or {"": pa.repeat("", len(rows))}
        count = rows.column(counted) if frames else pa.array(values.of([rows.column(counted)]))
        parts.append(keys.pack(numbers, pa.RecordBatch.from_pydict({**text, counted: count}), list(text), [counted]))
    number, count = keys.split_frames(keys.repeated(np.sort(keys.join(parts))))
    told = []
    for n, c in zip(number.tolist(), count.tolist(), strict=True):
        last = f"{counted} {c}" if frames else keys.brief(values.names[c][0])
        told.append(" ".join([*map(keys.brief, numbers.names[n]), last]).strip())
    return keyless, told
