"""The words of the command line: commands, their options, and what each of them means."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from flows import dispatch

DEFAULT_STORE = "csip-store"
_MOST_DAYS = 36_500

_Run = Callable[[argparse.Namespace], int | None]


class _Maker(Protocol):
    def __call__(self, name: str, run: _Run, *, endless: bool = False) -> argparse.ArgumentParser: ...


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="csip", description="Surveillance video to people who can be found again.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: _Run, *, endless: bool = False) -> argparse.ArgumentParser:
        text = run.__doc__ or ""
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        made.set_defaults(run=run, endless=endless)
        return made

    _add_pipeline(command)
    _add_results(command)
    _add_operation(command)
    _add_store_care(command)
    return parser


def _add_pipeline(command: _Maker) -> None:
    demo = command("demo", dispatch.demo)
    demo.add_argument("--out", default="csip-demo", metavar="DIR", help="the store's folder (default: %(default)s)")
    _with_set(demo)

    build = command("build-skeletons", dispatch.build)
    sources = (
        "a video, a folder of videos, or a .csv manifest; or one benchmark: mars:FOLDER, lsvid:FOLDER, ilids:FOLDER, "
        "biwi:FOLDER, ias:FOLDER, labelled:PATH (one's own, see README), walkers:"
    )
    build.add_argument("source", nargs="*", metavar="SOURCE", help=sources)
    build.add_argument("--camera", default="", metavar="NAME", help="the one camera that took all of them")
    build.add_argument(
        "--recipe", default="", metavar="NAME", help="whose numbers hold (default: the benchmark's, else video)"
    )
    text = "in the place of sources: track the videos of this snapshot again, without running the pose model"
    build.add_argument("--retrack", default="", metavar="SNAPSHOT", help=text)
    text = "write the tracks as MOTChallenge text; a folder where there are several videos"
    build.add_argument("--mot-out", type=Path, metavar="FILE", help=text)
    build.add_argument("--profile", action="store_true", help="say where the time of the extraction went")
    _with_store(build)
    _with_set(build)

    check = command("check", dispatch.check)
    check.add_argument("source", nargs="+", metavar="SOURCE", help="as for build-skeletons")
    check.add_argument("--recipe", default="", metavar="NAME", help="as for build-skeletons")
    _with_set(check)

    train = command("train-csip", dispatch.train)
    train.add_argument("recipe", metavar="RECIPE", help="whose numbers hold: mars, biwi, video, ... (see README)")
    train.add_argument("--snapshot", required=True, metavar="NAME")
    _with_store(train)
    _with_set(train)

    evaluate = command("evaluate-csip", dispatch.evaluate)
    evaluate.add_argument("checkpoint", metavar="CHECKPOINT", help="a .safetensors file that train-csip wrote")
    evaluate.add_argument("--snapshot", required=True, metavar="NAME")
    _with_store(evaluate)
    _with_set(evaluate)

    ablate = command("ablate", dispatch.ablate)
    ablate.add_argument("recipe", metavar="RECIPE", help="one whose benchmark is made here: walkers")
    ablate.add_argument("--seeds", type=_positive, default=3, metavar="N", help="trainings a row (default: 3)")
    ablate.add_argument("--rows", default="abcdef", metavar="LETTERS", help="rows of the table (default: abcdef)")
    text = "trainings side by side (default: one a CPU core, or one where there is a GPU)"
    ablate.add_argument("--parallel", type=_positive, default=0, metavar="N", help=text)
    _with_store(ablate)
    _with_set(ablate)


def _add_results(command: _Maker) -> None:
    score = command("score", dispatch.score)
    score.add_argument("file", metavar="FILE", help="an .npz file as `csip export` writes it, see README")
    score.add_argument(
        "--protocol", default="", metavar="NAME", help="whose same-camera rule holds (default: the file's own)"
    )
    _with_set(score)

    export = command("export", dispatch.export)
    export.add_argument("result", metavar="RUN", help="of an evaluation")
    export.add_argument("file", metavar="FILE", help="the .npz file to write")
    export.add_argument("--encoder", default="trained", metavar="NAME", help="whose (default: %(default)s)")
    _with_store(export)

    published = command("import-checkpoint", dispatch.import_checkpoint)
    published.add_argument("file", metavar="FILE", help="a .pth or .pt file of tensors; code in it is not run")
    text = "the benchmark it was trained on: mars, lsvid or ilids; its cameras are then known there"
    published.add_argument("--dataset", default="", choices=("", "mars", "lsvid", "ilids"), metavar="NAME", help=text)
    _with_store(published)

    config = command("config", dispatch.config)
    config.add_argument("recipe", metavar="RECIPE")
    _with_set(config)

    lineage = command("lineage", dispatch.lineage)
    lineage.add_argument(
        "ref",
        metavar="REF",
        help=(
            "a run, RUN:FIGURE (as in 3f2a56b7c8d9:mAP; of several splits RUN:FIGURE@SPLIT), snapshot, tracklet, "
            "TRACKLET@FRAME, table@version, or the path or SHA-256 of a video or checkpoint"
        ),
    )
    _with_store(lineage)


def _add_operation(command: _Maker) -> None:
    deploy = command("deploy", dispatch.deploy)
    _with_deployments(deploy)

    serve = command("serve", dispatch.serve, endless=True)
    _with_deployments(serve)
    serve.add_argument("--port", type=_positive, default=4200, metavar="N", help="of the UI (default: %(default)s)")
    _with_limit(serve)

    pulls = command("worker", dispatch.worker, endless=True)
    pulls.add_argument("--pool", default="csip", metavar="NAME", help="work pool (default: %(default)s)")
    _with_limit(pulls)
    pulls.add_argument("--with-healthcheck", action="store_true", help="answer on port 8080, at /health")

    join = command("join", dispatch.join, endless=True)
    join.add_argument("address", metavar="HOST:PORT", help="what the flow has as runtime.rendezvous")
    join.add_argument("--nodes", type=_positive, default=2, metavar="N", help="machines in all (default: 2)")
    join.add_argument("--node", type=_positive, default=1, metavar="K", help="this one's number, from 1 (default: 1)")
    _with_set(join)


def _add_store_care(command: _Maker) -> None:
    _with_store(command("snapshots", dispatch.snapshots))

    verify = command("verify", dispatch.verify)
    verify.add_argument(
        "snapshot", nargs="*", metavar="NAME", help="look at these snapshots only (default: all there is)"
    )
    verify.add_argument("--deep", action="store_true", help="look into every crop, too")
    _with_store(verify)

    diff = command("diff", dispatch.diff)
    diff.add_argument("a", metavar="A", help="a snapshot")
    diff.add_argument("b", metavar="B", help="another one")
    _with_store(diff)

    clean = command("gc", dispatch.gc)
    clean.add_argument("--dry-run", action="store_true", help="change nothing, and say what would be done")
    text = "a snapshot to drop first; may be repeated"
    clean.add_argument("--drop", action="append", default=[], metavar="NAME", help=text)
    clean.add_argument("--force", action="store_true", help="drop it though runs were made from it")
    text = "what was in use within so many days is left (default: 7); 0 only while nobody else uses the store"
    clean.add_argument("--older-than", type=_days, default=_days("7"), metavar="DAYS", help=text)
    text = "give back raw detections that no snapshot uses, too; making them again takes the pose model"
    clean.add_argument("--detections", action="store_true", help=text)
    _with_store(clean)

    erase = command("forget", dispatch.forget)
    whom = erase.add_mutually_exclusive_group(required=True)
    whom.add_argument("--pid", type=int, metavar="N", help="a person of --snapshot, by number")
    whom.add_argument("--tracklet", action="append", metavar="ID", help="a tracklet; may be repeated")
    whom.add_argument("--video", metavar="SHA-OR-PATH", help="a video, with all people in it")
    erase.add_argument("--snapshot", default="", metavar="NAME", help="whose number --pid is")
    erase.add_argument("--dry-run", action="store_true", help="change nothing, and say what would be removed")
    erase.add_argument("--yes", action="store_true", help="do not ask")
    _with_store(erase)


def _with_store(made: argparse.ArgumentParser) -> None:
    default = os.environ.get("CSIP_STORE") or DEFAULT_STORE
    text = "the store: a folder, or s3://BUCKET/PREFIX for its tables (default: %(default)s)"
    made.add_argument("--store", default=default, metavar="DIR", help=text)


def _with_set(made: argparse.ArgumentParser) -> None:
    text = "change one number of the recipe; may be repeated"
    made.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help=text)


def _with_limit(made: argparse.ArgumentParser) -> None:
    text = "flow runs at once: one for each GPU (default: %(default)s)"
    made.add_argument("--limit", type=_positive, default=1, metavar="N", help=text)


def _with_deployments(made: argparse.ArgumentParser) -> None:
    text = "what a run of build-skeletons builds from where it is told nothing else (default: the shipped video)"
    made.add_argument("source", nargs="*", metavar="SOURCE", help=text)
    made.add_argument("--camera", default="", metavar="NAME", help="as for build-skeletons")
    text = "whose numbers hold where a run is told no other (default: demo for the shipped video, else video)"
    made.add_argument("--recipe", default="", metavar="NAME", help=text)
    made.add_argument("--pool", default="csip", metavar="NAME", help="work pool (default: %(default)s)")
    text = "start a training whenever a build publishes a snapshot"
    made.add_argument("--train-after-builds", action="store_true", help=text)
    text = "leave the active Prefect profile alone; runs are then named build-skeletons/build-skeletons and so on"
    made.add_argument("--no-plugin", action="store_true", help=text)
    _with_store(made)
    _with_set(made)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _days(text: str) -> timedelta:
    days = float(text)
    if not 0 <= days <= _MOST_DAYS:
        raise ValueError(text)
    return timedelta(days=days)
