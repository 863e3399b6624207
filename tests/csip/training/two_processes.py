"""Trainings in two processes, one after the other; `test_processes.py` starts it with torchrun.

Reads ``jobs.json`` in the folder named on the command line, and writes what each job came to into ``told.json``.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import torch

from csip import ranks
from csip.plain import from_plain, to_plain


def call(job):
    """Make the stage's generator, its arguments read as its annotations say."""
    function = getattr(import_module(job["module"]), job["name"])
    hints = get_type_hints(function)
    return function(**{name: from_plain(hints[name], value) for name, value in job["arguments"].items()})


def work(job):
    if job["left"]:
        stage = call(job)
        for _ in range(job["left"]):
            next(stage)
        stage.close()
    stage, figures = call(job), []
    while True:
        try:
            record = next(stage)
        except StopIteration as end:
            return {"figures": figures, "outcome": to_plain(end.value)}
        except (ValueError, RuntimeError) as error:
            return {"error": str(error), "figures": figures}
        if record.values:
            figures.append(dict(record.values))


def main(folder):
    torch.set_num_threads(1)
    import_module("csip.training.features")._COMMIT_FRAMES = 20
    import_module("csip.evaluation.embed")._COMMIT_PARTS = 3
    with ranks.joined():
        told = [work(job) for job in json.loads((folder / "jobs.json").read_text())]
        (folder / f"told-{ranks.rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
