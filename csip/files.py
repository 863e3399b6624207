"""Files by their content."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest_file(path: Path) -> str:
    """Give the SHA-256 of a file's bytes, 64 hexadecimal digits; it is never held in memory as a whole.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
