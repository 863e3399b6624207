"""What can be said of a version without reading its rows: whether its keys are keys, and its files are there."""

from __future__ import annotations

from pathlib import Path

from lance.file import LanceFileReader

from csip.store.versions import check_schema, is_address, open_version, why
from csip.types import TableRef


def check_keys_of(ref: TableRef) -> None:
    """Check that a pinned version is one that could be written to, were it the newest.

    Raises:
        StoreError: it cannot be opened.
        SchemaMismatchError: it is of a schema that is not known, or its keys are none to Lance.
    """
    check_schema(open_version(ref), ref.uri)


def damaged_files(ref: TableRef, known: dict[str, str]) -> dict[str, str]:
    """Open the data files of a pinned version, and give those that are gone or cut: name -> what is wrong.

    What they hold is not read, and no file is opened twice.

    Args:
        ref: the version.
        known: path -> what is wrong with it, or nothing, of files that were opened before; those of `ref` are added.

    Raises:
        StoreError: the version cannot be opened.
    """
    found = {}
    for fragment in open_version(ref).get_fragments():
        for file in fragment.metadata.files:
            path = f"{ref.uri}/data/{file.path}"
            if path not in known:
                known[path] = _damage(path, file.file_size_bytes)
            if known[path]:
                found[file.path] = known[path]
    return found


def _damage(path: str, size: int | None) -> str:
    if not is_address(path):
        # Lance panics over an empty file, which a crash of the machine may leave.
        try:
            held = Path(path).stat().st_size
        except OSError as error:
            return str(error.strerror)
        if size is not None and held != size:
            return f"found {held} bytes, expected {size}"
    try:
        LanceFileReader(path)
    except (OSError, ValueError) as error:
        return why(error)
    return ""
