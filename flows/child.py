"""The process that a heavy stage runs in: a request on standard input, progress on standard output, a manifest file.

A process of its own can be killed when native code hangs, gives its GPU memory back, and knows nothing of Prefect.
It ends by itself when its parent does: the parent holds the other end of standard input open.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import IO, Any, get_type_hints

from csip import tables
from csip.config import from_plain, to_plain
from csip.errors import CsipError
from csip.types import Outcome, Output, Progress, Stage

OURS = ("csip", "flows", "storage_schemas")
_SECONDS_BETWEEN_RECORDS = 0.2


def run_stage(stage: Stage[Any], out: Output, name: str, tell: Any) -> Outcome[Any]:
    """Run a stage to its end: pass on its progress, and keep every epoch's figures in `metrics`."""
    last = float("-inf")
    while True:
        try:
            record = next(stage)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if record.unit == "epochs" and record.values:
            rows = [
                {"run_id": out.run_id, "step": record.done, "name": key, "stage": name, "value": float(value)}
                for key, value in record.values.items()
            ]
            tables.upsert(out.store, "metrics", tables.from_rows("metrics", rows))
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_RECORDS or record.done == record.total:
            last = now
            tell(record)


def call(function: Any, arguments: dict[str, Any]) -> Any:
    """Call a stage function with arguments as `to_plain` wrote them, checked against its annotations."""
    hints = get_type_hints(function)
    return function(**{name: from_plain(hints[name], value) for name, value in arguments.items()})


def raised_by(error: BaseException, *packages: str) -> bool:
    """Tell whether code of one of these packages raised it: their own message, not a bug further down."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(names) and names[-1].partition(".")[0] in packages


def main() -> int:
    """Serve one request; exit 0 with a result, 3 with a user's error, 1 with a traceback on standard error."""
    # Libraries that print must not break the stream of records.
    records = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, args=(sys.stdin,), daemon=True).start()
    manifest = Path(request["manifest"])

    def tell(record: Progress) -> None:
        records.write(json.dumps(to_plain(record)) + "\n")
        records.flush()

    try:
        module, _, name = request["function"].rpartition(":")
        out: Output = from_plain(Output, request["out"])
        stage = call(getattr(import_module(module), name), request["arguments"] | {"out": request["out"]})
        outcome = run_stage(stage, out, name, tell)
    except (CsipError, ValueError) as error:
        if isinstance(error, ValueError):
            if not raised_by(error, *OURS):
                raise
            logging.getLogger(__name__).exception("%s", name)
        _write(manifest, {"error": type(error).__name__, "message": str(error)})
        return 3
    except KeyboardInterrupt:
        return 130
    _write(manifest, {"outcome": to_plain(outcome)})
    return 0


def _end_with_parent(stdin: IO[str]) -> None:
    stdin.read()
    os._exit(130)


def _write(path: Path, manifest: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(manifest), encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
