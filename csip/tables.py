"""The door to Lance: open a pinned version, write a version, record a run, publish a snapshot.

A store is a folder, or an address of object storage (`s3://BUCKET/PREFIX`), with one Lance table for each schema of
`storage_schemas`; files that are no tables lie in the folder beside them, or in that of CSIP_FILES. Every write is an
upsert on the table's key, so that doing the same work twice changes nothing. Row order is nobody's promise: `read`
sorts by key, and `Rows` builds its index once for one pinned version.

Where object storage is and who may enter, Lance reads from the environment by itself: AWS_ENDPOINT_URL (and
AWS_ALLOW_HTTP=true for one without TLS), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION. None of it passes
through here, so that none of it can be written to a row, a log or a lineage.

What goes through it is made in `csip.store`, which nothing else imports from. Lance is not fork-safe: a worker process
opens its own tables, under `spawn`.
"""

from csip.store.checking import check_keys_of, damaged_files
from csip.store.closing import alone, at_work, close_table, closed_by, open_table, seal, young_file
from csip.store.columns import (
    binary_views,
    boxes_array,
    boxes_column,
    from_rows,
    keypoints_array,
    keypoints_column,
    vectors_array,
    vectors_column,
)
from csip.store.faults import may_pass
from csip.store.fragments import Fragments, FragmentWriter, commit_fragments, delete_rows
from csip.store.paths import FOLDERS, files_in, folder, home, inside, known_file
from csip.store.reading import Rows, count, described, read, stream, stream_tracklets
from csip.store.records import (
    RunRecord,
    check_name,
    check_row,
    find_run,
    find_runs,
    newest_snapshot,
    now,
    open_snapshot,
    pinned,
    publish,
    published_at,
    read_snapshots,
    record_run,
    record_runs,
    snapshot_row,
    snapshot_tag,
)
from csip.store.upkeep import (
    Extent,
    clean_up,
    compact,
    delete_as_read,
    extent,
    list_tags,
    list_versions,
    plan_compaction,
    untag,
)
from csip.store.versions import any_of, current, exists, is_address, quote, table_uri
from csip.store.writing import delete, describe, prepare_store, upsert
from csip.types import TableRef
from storage_schemas import TABLES

__all__ = [
    "FOLDERS",
    "TABLES",
    "Extent",
    "FragmentWriter",
    "Fragments",
    "Rows",
    "RunRecord",
    "TableRef",
    "alone",
    "any_of",
    "at_work",
    "binary_views",
    "boxes_array",
    "boxes_column",
    "check_keys_of",
    "check_name",
    "check_row",
    "clean_up",
    "close_table",
    "closed_by",
    "commit_fragments",
    "compact",
    "count",
    "current",
    "damaged_files",
    "delete",
    "delete_as_read",
    "delete_rows",
    "describe",
    "described",
    "exists",
    "extent",
    "files_in",
    "find_run",
    "find_runs",
    "folder",
    "from_rows",
    "home",
    "inside",
    "is_address",
    "keypoints_array",
    "keypoints_column",
    "known_file",
    "list_tags",
    "list_versions",
    "may_pass",
    "newest_snapshot",
    "now",
    "open_snapshot",
    "open_table",
    "pinned",
    "plan_compaction",
    "prepare_store",
    "publish",
    "published_at",
    "quote",
    "read",
    "read_snapshots",
    "record_run",
    "record_runs",
    "seal",
    "snapshot_row",
    "snapshot_tag",
    "stream",
    "stream_tracklets",
    "table_uri",
    "untag",
    "upsert",
    "vectors_array",
    "vectors_column",
    "young_file",
]
