"""How a commit comes about though others commit too, and how a table made by an older CSIP gets what is new."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

import lance
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.schema import LanceSchema

from csip.errors import StoreBusyError
from csip.store.faults import store_error
from csip.store.paths import check_table
from csip.store.versions import check_schema, open_current, why
from storage_schemas import TABLES
from storage_schemas.fields import SCHEMA_VERSION, default, key_names, since

T = TypeVar("T")

CLOSED, FORGOTTEN_LAST = "csip.forgetting", "csip.forgotten"
"""What a table's metadata say of `csip forget` (`csip.store.closing`): who has closed the table, and who did last."""
OWN: ContextVar[str] = ContextVar("OWN", default="")
"""By whom a table may be closed that this thread may write to all the same."""

# What Lance says where it has no exception of its own for it; whole phrases, as a store's path may hold such words.
_CONFLICTS = ("commit conflict", "concurrent transaction", "concurrent writ", "conflict over the tag")
_ATTEMPTS = 20
_FIRST_WAIT, _LONGEST_WAIT = 0.02, 2.0
_DICE = random.SystemRandom()  # waiting must not move the numbers that a training draws


def preempted(error: Exception) -> bool:
    """Tell whether a commit failed only since another writer's came before."""
    told = str(error).lower()
    return isinstance(error, CommitConflictError) or any(words in told for words in _CONFLICTS)


def commit(uri: str, what: str, attempt: Callable[[], T]) -> T:
    """Commit, and look again and commit again while other writers come before.

    Args:
        uri: of the table.
        what: is written, for the message.
        attempt: opens the newest version, and commits on it.

    Raises:
        StoreError: it cannot be written, or a link leads out of the store; the table is as it was. Where it is a
            `StorageFaultError`, it may pass by itself.
        StoreBusyError: others came before every time; the table is as it was.
    """
    check_table(uri)
    for number in range(_ATTEMPTS):
        try:
            return attempt()
        except (OSError, pa.ArrowException) as error:
            if not preempted(error):
                raise store_error(
                    f"{uri}: {what} could not be written ({why(error)}). The table is as it was; free space or mend "
                    "the permissions and run the same command again.",
                    error,
                ) from error
            last = error
        # By chance, so that those who met do not meet again.
        time.sleep(_DICE.uniform(0, min(_LONGEST_WAIT, _FIRST_WAIT * 2**number)))
    raise StoreBusyError(
        f"{uri}: {what} could not be written: other processes' commits came before {_ATTEMPTS} times ({why(last)}). "
        "The table is as it was without it; run the same command again when fewer write."
    ) from last


def refuse_if_closed(dataset: lance.LanceDataset) -> None:
    """Refuse to write to a table while somebody is forgotten in its store.

    It is a version's own metadata that say so: whoever commits on that version, and no later one, has looked in time.

    Raises:
        StoreBusyError: it is closed by somebody else.
    """
    by = dataset.metadata.get(CLOSED, "")
    if by and by != OWN.get():
        raise StoreBusyError(
            f"{dataset.uri}: is closed while somebody is forgotten in this store (`csip forget`, {by}); nothing was "
            "written. Wait until that has ended, and run the same command again. If it was killed, run any `csip "
            "forget` on this store, without --dry-run, which finishes it."
        )


def open_for_writing(store: str, name: str) -> lance.LanceDataset:
    """Open a table's newest version, after bringing it up to the newest schema.

    That is one commit: a kill before it leaves the old table, and nobody ever sees half of the columns. Where two
    processes do it at once, one of them finds it done.

    Raises:
        StoreError: there is no such table, or it cannot be written.
        StoreBusyError: it is closed while somebody is forgotten.
        SchemaMismatchError: it is of a schema that this CSIP does not know.
    """
    dataset = open_current(store, name)
    refuse_if_closed(dataset)
    if check_schema(dataset, dataset.uri) == SCHEMA_VERSION:
        return dataset
    return commit(dataset.uri, f"schema {SCHEMA_VERSION}", lambda: _bring_up(store, name))


def _bring_up(store: str, name: str) -> lance.LanceDataset:
    dataset = open_current(store, name)
    version = check_schema(dataset, dataset.uri)
    if version == SCHEMA_VERSION:
        return dataset
    later = pa.schema([field for field in TABLES[name] if since(field) > version])

    def defaults(rows: pa.RecordBatch) -> pa.RecordBatch:
        values = [pa.repeat(default(field), rows.num_rows) for field in later]
        return pa.record_batch(values, schema=later)

    fragments = [fragment.metadata for fragment in dataset.get_fragments()]
    if len(later):
        least = key_names(dataset.schema)[:1]
        fragments = [f.merge_columns(defaults, columns=least)[0] for f in dataset.get_fragments()]
    schema = pa.schema([*dataset.schema, *later], metadata=TABLES[name].metadata)
    return commit_fragments_as(dataset, fragments, LanceSchema.from_pyarrow(schema))


def commit_fragments_as(
    dataset: lance.LanceDataset, fragments: list[lance.FragmentMetadata], schema: LanceSchema
) -> lance.LanceDataset:
    """Make a version of just these fragments, if nobody has written rows since `dataset` was opened.

    Of Lance's operations this is the one that stands back before any other writer's; `Append` looks at none of them.

    Raises:
        CommitConflictError: somebody has.
    """
    merged = lance.LanceOperation.Merge(fragments, schema, preserves_nullability=True)
    return lance.LanceDataset.commit(dataset.uri, merged, read_version=dataset.version, max_retries=0)
