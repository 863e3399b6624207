"""Stage functions small enough to watch: each does one thing that a real stage may do, or may suffer."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from csip import ranks, tables
from csip.config import EmbedConfig, RuntimeConfig, SplitConfig
from csip.device import resolve_device
from csip.errors import StorageFaultError, StoreBusyError, StoreError, TooLittleDataError
from csip.types import EmbeddingsRef, FileRef, Outcome, Output, Progress, Snapshot, Stage, TableRef, VideoList


def write_file(
    out: Output,
    parents: tuple[tuple[FileRef, ...], ...],
    embeddings: EmbeddingsRef,
    config: EmbedConfig,
    seed: int,
    runtime: RuntimeConfig,
) -> Stage[FileRef]:
    """Write what it was given to a file, in two epochs."""
    for epoch in (1, 2):
        yield Progress("write_file", epoch, 2, "epochs", {"loss": 1 / epoch, "rate": 0.5})
    content = f"{parents} {config} {seed}".encode()
    path = Path(out.store) / f"file-{out.run_id}"
    path.write_bytes(content)
    ref = FileRef(str(path), hashlib.sha256(content).hexdigest())
    return Outcome(ref, {"bytes": len(content), "left_out": {"too small": 3}}, {"eyes.pt": "e" * 64})


def train(out: Output, snapshot: Snapshot, config: SplitConfig, seed: int, runtime: RuntimeConfig) -> Stage[FileRef]:
    """Learn the versions of a snapshot by heart."""
    yield Progress("train", 1, 1, "epochs")
    path = Path(out.store) / f"learned-{out.run_id}"
    path.write_text(f"{sorted(snapshot.tables.items())} {config} {seed}")
    return Outcome(FileRef(str(path), hashlib.sha256(path.read_bytes()).hexdigest()))


def say(out: Output) -> Stage[FileRef]:
    """Log as the library does; another thread, at work on something else, does the same."""
    log = logging.getLogger("csip.toy")
    log.info("looked at three")
    log.warning("left one out")
    other = threading.Thread(target=log.warning, args=("not of this stage",))
    other.start()
    other.join()
    yield Progress("say", 1, 1, "words")
    return Outcome(FileRef("nowhere", "0" * 64))


def write_table(out: Output, config: SplitConfig) -> Stage[TableRef]:
    """Commit one row."""
    yield Progress("write_table", 1, 1, "rows")
    row = {"run_id": out.run_id, "step": 1, "name": "loss", "stage": "write_table", "value": 1.0}
    return Outcome(tables.upsert(out.store, "metrics", tables.from_rows("metrics", [row])))


def write_from_child(out: Output, frames: int, pause: float, runtime: RuntimeConfig) -> Stage[FileRef]:
    """Report every frame, and talk to standard output as some libraries do."""
    for done in range(1, frames + 1):
        print('{"not": "a record"}')  # noqa: T201
        os.write(1, b"a line from native code\n")
        subprocess.run([sys.executable, "-c", "print('a line from a grandchild')"], check=True)
        time.sleep(pause)
        yield Progress("write_from_child", done, frames, "frames", {"rate": 2.0 * done})
    path = Path(out.store) / f"{os.getpid()}"
    path.write_text("done")
    return Outcome(FileRef(str(path), "0" * 64), {"pid": os.getpid()})


def want_it_alone(out: Output, runtime: RuntimeConfig) -> Stage[FileRef]:
    """Try to have the store alone, as `csip forget` does; say why that is refused."""
    yield Progress("want_it_alone", 1, 1, "tries")
    told = "it is alone"
    try:
        with tables.alone(out.store, "run 1"):
            pass
    except StoreBusyError as error:
        told = str(error)
    return Outcome(FileRef(told, "0" * 64), {"pid": os.getpid()})


def count_videos(out: Output, videos: VideoList) -> Stage[FileRef]:
    """Count the videos of a list."""
    yield Progress("count_videos", 1, 1, "lists")
    return Outcome(FileRef("nowhere", "0" * 64), {"videos": len(videos.videos)})


def take_time(out: Output, runtime: RuntimeConfig) -> Stage[FileRef]:
    """Take half a second; leave a file that says from when to when, and which CUDA devices were shown."""
    begun = time.time()
    yield Progress("take_time", 0, 1, "files")
    time.sleep(0.5)
    path = Path(out.store) / f"time-{out.run_id}"
    path.write_text(f"{begun} {time.time()} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}")
    return Outcome(FileRef(str(path), hashlib.sha256(path.read_bytes()).hexdigest()))


def refuse(out: Output, what: str, runtime: RuntimeConfig) -> Stage[FileRef]:
    """Raise what a user, or a programmer, got wrong."""
    yield Progress("refuse", 0, 1, "files")
    if what == "caller":
        resolve_device("abacus")
    if what == "ZeroDivisionError":
        return Outcome(1 / 0)
    if what == "ValueError":
        return Outcome(float("a number"))
    raise TooLittleDataError(f"Found 3 people in {Path(out.store).name}, expected 4.\nAdd video: «street».")


def die(out: Output, how: str, mark: str, runtime: RuntimeConfig) -> Stage[FileRef]:
    """End, or never end, as native code does; first say who it is in the file `mark`."""
    yield Progress("die", 1, 3, "frames")
    with Path(mark).open("a+") as attempts:
        attempts.write(f"{os.getpid()} ")
        attempts.seek(0)
        first = len(attempts.read().split()) == 1
    if how == "busy":
        raise StoreBusyError("Others came before.")
    if how == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
        yield Progress("die", 2, 3, "frames")
    if how == "fault":
        raise StorageFaultError("The disk is away.")
    if how in errno.errorcode.values():
        raise OSError(getattr(errno, how), how)
    if how == "user":
        raise StoreError("There is no such store.")
    if how == "kill once" and not first:
        return Outcome(FileRef(mark, "0" * 64))
    sys.stderr.write("decoder: bad cast in layer 7\n")
    sys.stderr.flush()
    if how == "exit":
        os._exit(7)
    if how.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
    yield Progress("die", 2, 3, "frames")
    return Outcome(FileRef(mark, "0" * 64))


def work_together(out: Output, how: str, mark: str, runtime: RuntimeConfig) -> Stage[FileRef]:
    """Count over all processes, three times; each first says who it is in a file, and the second one may fail."""
    me = Path(f"{mark}-{ranks.rank()}")
    again = me.is_file()
    me.write_text(f"{os.getpid()}")
    me.with_suffix(".device").write_text(runtime.device)
    for done in range(1, 4):
        total = ranks.total_count(done * 10 ** ranks.rank())
        if ranks.rank() == 1 and done == 2 and not (how.endswith("once") and again):
            _suffer(how)
        if done == 2 and how == "refuse":
            raise TooLittleDataError(f"Found {ranks.size()} processes, expected 3.")
        if how == "hang":
            time.sleep(600)
        yield Progress("work_together", done, 3, "epochs", {"total": float(total)})
    return Outcome(FileRef(mark, "0" * 64), {"total": ranks.total_count(1)})


def _suffer(how: str) -> None:
    if how.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if how.startswith("stop"):
        # As a machine that is switched off: nothing is said, and nothing is closed.
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "exit":
        os._exit(7)
    if how == "bug":
        raise ZeroDivisionError("one by none")
