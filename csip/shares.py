"""Rows that several processes make together: each writes those of its share, and the first one commits all of them.

The processes of `csip.ranks` work in step, since all of them are asked something after every record of progress: each
gives as many records as another, also where its share has run out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TypeVar

import pyarrow as pa
import torch

from csip import ranks, tables
from csip.tables import Fragments, FragmentWriter
from csip.types import TableRef

T = TypeVar("T")


def newest(store: str, name: str) -> TableRef:
    """Pin a table at the version that is newest for the first process; all of them must ask."""
    ref = tables.current(store, name)
    return TableRef(ref.uri, int(ranks.from_first(torch.tensor(ref.version))))


def own(items: Sequence[T]) -> Sequence[T]:
    """Give this process its share of some items: every so many'th; the shares of all differ by one item at most."""
    return items[ranks.rank() :: ranks.size()]


def commit(store: str, name: str, rows: pa.Table) -> None:
    """Write the rows of all processes in one commit, by key; all of them must ask.

    Args:
        store: the store's folder, or its address in object storage; the same for all processes.
        name: the table's.
        rows: that this process has made; there may be none.

    Raises:
        SchemaMismatchError: `rows` have other columns than the table.
        ValueError: two rows have the same key, of one process or of two.
        StoreError: they cannot be written; the table is as it was.
    """
    with FragmentWriter(store, name) as writer:
        writer.write(rows)
    written = ranks.text_from_each(json.dumps(asdict(writer.fragments)))
    if ranks.rank() == 0:
        tables.commit_fragments(store, name, [_read(text) for text in written])


def _read(text: str) -> Fragments:
    told = json.loads(text)
    return Fragments(**told | {"parts": tuple(told["parts"])})
