"""What the table `skeletons` says, in its own metadata, of those who made its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from csip import tables
from csip.types import TableRef

_KEY = "csip.extractor."


def describe_extractor(store: str, digest: str, facts: Mapping[str, Any]) -> None:
    """Say what made the rows of an extractor digest; nothing is written where the table says so already.

    Args:
        store: the store's folder.
        digest: as in the column `extractor_digest`.
        facts: `layout`, and whatever tells people more; JSON.

    Raises:
        StoreError: the commit failed.
    """
    said = json.dumps({"digest": digest, **facts}, sort_keys=True)
    tables.describe(store, "skeletons", {f"{_KEY}{digest}": said})


def read_extractors(ref: TableRef) -> dict[str, dict[str, Any]]:
    """Read what a pinned version of `skeletons` says of those who made its rows: extractor digest -> facts."""
    said = tables.described(ref)
    return {name.removeprefix(_KEY): json.loads(text) for name, text in said.items() if name.startswith(_KEY)}
