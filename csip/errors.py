"""What can go wrong, as types a caller can tell apart.

A caller's mistake in an argument is a ``ValueError``. What is wrong with data, files, weights or the
machine is a `CsipError`; its message says what was found, what was expected, where, and what to do next.
The command line prints the message of a `CsipError` without a traceback and exits with 1.
"""


class CsipError(Exception):
    """Base of every error that a user's data or machine can cause."""


class VideoError(CsipError):
    """A file cannot be decoded, or is not a video at all."""


class DecoderLostError(VideoError):
    """The process that decodes hung or died over a file, or its disk failed; another attempt may succeed."""


class SourceError(CsipError):
    """A source names nothing that can be read: no such path, no videos in the folder."""


class WeightsError(CsipError):
    """Model weights are missing, cannot be fetched, or are not what they claim to be."""


class StoreError(CsipError):
    """A store cannot be opened or written, or does not hold what was asked for."""


class StoreBusyError(StoreError):
    """Other writers came before every time, or somebody is being forgotten; another attempt may succeed."""


class StorageFaultError(StoreError):
    """The store's disk or network failed as it does for a while; another attempt may succeed."""


class SchemaMismatchError(StoreError):
    """A table's columns are not those that this version of the code reads and writes."""


class CheckpointError(CsipError):
    """A checkpoint is damaged, of another model, or does not fit the snapshot."""


class TooLittleDataError(CsipError):
    """There are not enough people, tracklets or frames for what was asked."""


class StageError(CsipError):
    """A stage's process died, hung, or ended without a result."""


class ProcessLostError(StageError):
    """A stage's process was killed from outside; another attempt goes on from what is committed."""
