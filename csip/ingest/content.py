"""A video file's content, by its digest, and whether a file still holds it while it is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from csip.errors import DecoderLostError, VideoError
from csip.ingest.container import Alive, FileLook, check_file, spell

_BLOCK = 1 << 20


def digest_file(path: Path, look: FileLook, alive: Alive) -> str:
    """Give the SHA-256 of a file's bytes, 64 hexadecimal digits.

    Args:
        path: of the file.
        look: what `check_file` said of it before.
        alive: called again and again.

    Raises:
        VideoError: it cannot be read, or is not as it was.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
                alive()
    except OSError as error:
        raise VideoError(
            f"{spell(path)}: reading it failed after {size} bytes ({error.strerror}). Copy it anew."
        ) from error
    if check_file(path) != look or size != look[0]:
        raise VideoError(
            f"{spell(path)}: had {look[0]} bytes and changed while it was read. Is it still being written? Run the "
            "same command again when it is complete."
        )
    return digest.hexdigest()


class SameContent:
    """Holds a reading to the content that was looked at before.

    It is looked at from outside; only where that is not as it was (a link to it was made, its rights were changed, a
    network gives it another number) are its bytes digested again.
    """

    def __init__(self, path: Path, sha256: str, look: FileLook, alive: Alive) -> None:
        """Look at nothing yet.

        Args:
            path: of the file.
            sha256: of its bytes.
            look: what it looked like when it had these.
            alive: called again and again while they are digested.
        """
        self._path, self._sha256, self._look, self._alive = path, sha256, look, alive

    def require(self) -> None:
        """Refuse what was read up to now if it may be of another content.

        Raises:
            DecoderLostError: the file changed, or is gone.
        """
        try:
            look = check_file(self._path)
            if look == self._look:
                return
            if look[0] == self._look[0] and digest_file(self._path, look, self._alive) == self._sha256:
                self._look = look
                return
        except VideoError as error:
            raise DecoderLostError(str(error)) from error
        raise DecoderLostError(
            f"{spell(self._path)}: is no longer the file of {self._look[0]} bytes that was looked at before. Is it "
            "still being written? Run the same command again when it is complete."
        )
