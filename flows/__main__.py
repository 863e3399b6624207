"""The one command line, `csip`.

Exit codes: 0 done, 1 could not be done (the message says why) or, of `verify`, faults were found, 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

DEFAULT_STORE = "csip-store"
_SECONDS_TO_LEAVE = 3.0
_MOST_DAYS = 36_500

# Read by Prefect when it is imported, so they are set before. All can be overridden from outside.
_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The command line prints a user's error itself, once, without a traceback.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_FLOW_RUNS_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_TASK_RUNS_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "CRITICAL",
    # Prefect gives its temporary server 20 seconds; a busy machine needs more.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="csip", description="Surveillance video to people who can be found again.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str, *, endless: bool = False
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        made.set_defaults(run=run, endless=endless)
        return made

    def with_store(made: argparse.ArgumentParser) -> None:
        default = os.environ.get("CSIP_STORE") or DEFAULT_STORE
        text = "the store: a folder, or s3://BUCKET/PREFIX for its tables (default: %(default)s)"
        made.add_argument("--store", default=default, metavar="DIR", help=text)

    def with_set(made: argparse.ArgumentParser) -> None:
        text = "change one number of the recipe; may be repeated"
        made.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help=text)

    def with_limit(made: argparse.ArgumentParser) -> None:
        text = "flow runs at once: one for each GPU (default: %(default)s)"
        made.add_argument("--limit", type=_positive, default=1, metavar="N", help=text)

    demo = command("demo", _demo, "Run everything on the video that ships with CSIP.")
    demo.add_argument("--out", default="csip-demo", metavar="DIR", help="the store's folder (default: %(default)s)")
    with_set(demo)

    build = command("build-skeletons", _build, "Videos to a published snapshot of tracklets, crops and skeletons.")
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
    with_store(build)
    with_set(build)

    check = command("check", _check, "Look whether a source can be built from, and what is in it; nothing is written.")
    check.add_argument("source", nargs="+", metavar="SOURCE", help="as for build-skeletons")
    check.add_argument("--recipe", default="", metavar="NAME", help="as for build-skeletons")
    with_set(check)

    train = command("train-csip", _train, "A snapshot to a trained network, its scores and a report.")
    train.add_argument("recipe", metavar="RECIPE", help="whose numbers hold: mars, biwi, video, ... (see README)")
    train.add_argument("--snapshot", required=True, metavar="NAME")
    with_store(train)
    with_set(train)

    evaluate = command("evaluate-csip", _evaluate, "A checkpoint and a snapshot to scores.")
    evaluate.add_argument("checkpoint", metavar="CHECKPOINT", help="a .safetensors file that train-csip wrote")
    evaluate.add_argument("--snapshot", required=True, metavar="NAME")
    with_store(evaluate)
    with_set(evaluate)

    score = command("score", _score, "A file of distances and identities, of any model, to scores.")
    score.add_argument("file", metavar="FILE", help="an .npz file as `csip export` writes it, see README")
    score.add_argument(
        "--protocol", default="", metavar="NAME", help="whose same-camera rule holds (default: the file's own)"
    )
    with_set(score)

    export = command("export", _export, "A result's distances and identities to a file that anybody can score.")
    export.add_argument("result", metavar="RUN", help="of an evaluation")
    export.add_argument("file", metavar="FILE", help="the .npz file to write")
    export.add_argument("--encoder", default="trained", metavar="NAME", help="whose (default: %(default)s)")
    with_store(export)

    ablate = command("ablate", _ablate, "Train with and without each part of the method, over several seeds.")
    ablate.add_argument("recipe", metavar="RECIPE", help="one whose benchmark is made here: walkers")
    ablate.add_argument("--seeds", type=_positive, default=3, metavar="N", help="trainings a row (default: 3)")
    ablate.add_argument("--rows", default="abcdef", metavar="LETTERS", help="rows of the table (default: abcdef)")
    text = "trainings side by side (default: one a CPU core, or one where there is a GPU)"
    ablate.add_argument("--parallel", type=_positive, default=0, metavar="N", help=text)
    with_store(ablate)
    with_set(ablate)

    published = command("import-checkpoint", _import, "A checkpoint of the published implementation to one of ours.")
    published.add_argument("file", metavar="FILE", help="a .pth or .pt file of tensors; code in it is not run")
    text = "the benchmark it was trained on: mars, lsvid or ilids; its cameras are then known there"
    published.add_argument("--dataset", default="", choices=("", "mars", "lsvid", "ilids"), metavar="NAME", help=text)
    with_store(published)

    def with_deployments(made: argparse.ArgumentParser) -> None:
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
        with_store(made)
        with_set(made)

    deploy = command("deploy", _deploy, "Make the flows' Prefect deployments, with their work pool and automations.")
    with_deployments(deploy)

    serve = command(
        "serve", _serve, "Run Prefect's server and UI, the deployments and a worker on this machine.", endless=True
    )
    with_deployments(serve)
    serve.add_argument("--port", type=_positive, default=4200, metavar="N", help="of the UI (default: %(default)s)")
    with_limit(serve)

    pulls = command(
        "worker", _worker, "Run Prefect's worker; it ends only when its runs have saved what they have.", endless=True
    )
    pulls.add_argument("--pool", default="csip", metavar="NAME", help="work pool (default: %(default)s)")
    with_limit(pulls)
    pulls.add_argument("--with-healthcheck", action="store_true", help="answer on port 8080, at /health")

    join = command(
        "join", _join, "Lend this machine to the trainings of a flow that runs on another one.", endless=True
    )
    join.add_argument("address", metavar="HOST:PORT", help="what the flow has as runtime.rendezvous")
    join.add_argument("--nodes", type=_positive, default=2, metavar="N", help="machines in all (default: 2)")
    join.add_argument("--node", type=_positive, default=1, metavar="K", help="this one's number, from 1 (default: 1)")
    with_set(join)

    config = command("config", _config, "Print every number of a recipe and where it comes from.")
    config.add_argument("recipe", metavar="RECIPE")
    with_set(config)

    lineage = command("lineage", _lineage, "Walk from a result back to the videos it came from.")
    lineage.add_argument(
        "ref",
        metavar="REF",
        help=(
            "a run, RUN:FIGURE (as in 3f2a56b7c8d9:mAP; of several splits RUN:FIGURE@SPLIT), snapshot, tracklet, "
            "TRACKLET@FRAME, table@version, or the path or SHA-256 of a video or checkpoint"
        ),
    )
    with_store(lineage)

    with_store(command("snapshots", _snapshots, "List what a store publishes."))

    verify = command("verify", _verify, "Look whether a store is whole; exit code 1 where it is not.")
    verify.add_argument(
        "snapshot", nargs="*", metavar="NAME", help="look at these snapshots only (default: all there is)"
    )
    verify.add_argument("--deep", action="store_true", help="look into every crop, too")
    with_store(verify)

    diff = command("diff", _diff, "Say what tells two snapshots apart.")
    diff.add_argument("a", metavar="A", help="a snapshot")
    diff.add_argument("b", metavar="B", help="another one")
    with_store(diff)

    clean = command("gc", _gc, "Merge small files, and give back what no snapshot, tag or run names.")
    clean.add_argument("--dry-run", action="store_true", help="change nothing, and say what would be done")
    text = "a snapshot to drop first; may be repeated"
    clean.add_argument("--drop", action="append", default=[], metavar="NAME", help=text)
    clean.add_argument("--force", action="store_true", help="drop it though runs were made from it")
    text = "what was in use within so many days is left (default: 7); 0 only while nobody else uses the store"
    clean.add_argument("--older-than", type=_days, default=_days("7"), metavar="DAYS", help=text)
    with_store(clean)

    erase = command("forget", _forget, "Remove a person or a video from all tables for good; while no build runs.")
    whom = erase.add_mutually_exclusive_group(required=True)
    whom.add_argument("--pid", type=int, metavar="N", help="a person of --snapshot, by number")
    whom.add_argument("--tracklet", action="append", metavar="ID", help="a tracklet; may be repeated")
    whom.add_argument("--video", metavar="SHA-OR-PATH", help="a video, with all people in it")
    erase.add_argument("--snapshot", default="", metavar="NAME", help="whose number --pid is")
    erase.add_argument("--dry-run", action="store_true", help="change nothing, and say what would be removed")
    erase.add_argument("--yes", action="store_true", help="do not ask")
    with_store(erase)
    return parser


def _recipe(name: str, assignments: list[str]) -> Any:
    from csip.device import resolve_device
    from flows.overrides import with_overrides
    from flows.recipes import RECIPES

    if name not in RECIPES:
        raise UsageError(f"found no recipe {name!r}; there are: {', '.join(RECIPES)}.")
    try:
        experiment = with_overrides(RECIPES[name](), assignments)
        resolve_device(experiment.runtime.device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return experiment


class UsageError(Exception):
    """What was typed makes no sense; exit code 2."""


# What was typed is looked at first: the flows take seconds to import.
def _demo(args: argparse.Namespace) -> None:
    experiment = _recipe("demo", args.set)
    from flows import commands

    commands.demo(experiment, str(Path(args.out).resolve()), as_json=args.json)


def _build_recipe(args: argparse.Namespace) -> Any:
    """Take the recipe that was named, else that of the benchmark, else that of one's own data."""
    from flows.recipes import RECIPES

    first = args.source[0] if args.source else ""
    kind = first.partition(":")[0]
    return _recipe(args.recipe or (kind if kind in RECIPES and ":" in first else "video"), args.set)


def _build(args: argparse.Namespace) -> None:
    if bool(args.source) == bool(args.retrack):
        raise UsageError("build-skeletons: name SOURCEs, or --retrack SNAPSHOT, and not both.")
    if args.retrack and any(one.startswith("detect.") for one in args.set):
        raise UsageError("--retrack: takes detections as they are; build from SOURCEs to detect with other settings.")
    experiment = _build_recipe(args)
    from flows import commands

    commands.build(
        tuple(args.source),
        args.camera,
        experiment,
        _absolute(args.store),
        retrack=args.retrack,
        mot_out=args.mot_out.resolve() if args.mot_out else None,
        profile=args.profile,
        as_json=args.json,
    )


def _check(args: argparse.Namespace) -> None:
    experiment = _build_recipe(args)
    from flows import look

    look.check(tuple(args.source), experiment, as_json=args.json)


def _train(args: argparse.Namespace) -> None:
    experiment = _recipe(args.recipe, args.set)
    from flows import commands

    commands.train(args.snapshot, experiment, _folder(args.store), as_json=args.json)


def _evaluate(args: argparse.Namespace) -> None:
    experiment = _recipe("video", args.set)
    from flows import commands

    commands.evaluate(Path(args.checkpoint), args.snapshot, experiment, _folder(args.store), as_json=args.json)


def _score(args: argparse.Namespace) -> None:
    experiment = _recipe("video", args.set)
    from flows import commands

    commands.score(Path(args.file), args.protocol, experiment, as_json=args.json)


def _export(args: argparse.Namespace) -> None:
    from flows import commands

    commands.export(args.result, args.encoder, Path(args.file).resolve(), _absolute(args.store), as_json=args.json)


def _ablate(args: argparse.Namespace) -> None:
    from csip.device import resolve_device

    experiment = _recipe(args.recipe, args.set)
    on_cpu = resolve_device(experiment.runtime.device) == "cpu"
    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0))
    parallel = args.parallel or (cores if on_cpu else 1)
    # Side by side is what was asked for, whatever the number of devices.
    runtime = replace(experiment.runtime, per_device=max(experiment.runtime.per_device, parallel))
    if on_cpu and not runtime.threads:
        runtime = replace(runtime, threads=max(1, (cores or 1) // parallel))
    experiment = replace(experiment, runtime=runtime)
    from flows import commands
    from flows.ablate_csip import ROWS

    rows = tuple(dict.fromkeys(args.rows))
    if not set(rows) <= set(ROWS):
        raise UsageError(f"--rows {args.rows}: found letters other than those of the table: {''.join(ROWS)}.")
    commands.ablate(experiment, _folder(args.store), args.seeds, rows, parallel, as_json=args.json)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _import(args: argparse.Namespace) -> None:
    store = _folder(args.store)
    from flows import commands

    commands.import_published(Path(args.file).resolve(), store, args.dataset, as_json=args.json)


def _plan(args: argparse.Namespace) -> Any:
    """Take the recipe that was named, else that of the demo for its video, else as builds do."""
    experiment = _build_recipe(args) if args.source or args.recipe else _recipe("demo", args.set)
    store = _absolute(args.store)
    from flows.deploy import Plan

    return Plan(experiment, tuple(args.source), store, args.camera, args.pool, args.train_after_builds)


def _deploy(args: argparse.Namespace) -> None:
    plan = _plan(args)
    from flows import operate

    operate.deploy_flows(plan, plugin=not args.no_plugin, as_json=args.json)


def _serve(args: argparse.Namespace) -> None:
    plan = _plan(args)
    from flows import operate

    operate.serve_flows(plan, plugin=not args.no_plugin, port=args.port, at_once=args.limit)


def _worker(args: argparse.Namespace) -> None:
    from flows.worker import work

    work(args.pool, args.limit, healthcheck=args.with_healthcheck)


def _join(args: argparse.Namespace) -> None:
    if args.node >= args.nodes:
        raise UsageError(f"--node {args.node}: expected 1 to {args.nodes - 1}; the flow's own machine is 0.")
    experiment = _recipe("video", [*args.set, f"runtime.nodes={args.nodes}", f"runtime.rendezvous={args.address}"])
    from flows import operate

    operate.join_trainings(experiment.runtime, args.node)


def _config(args: argparse.Namespace) -> None:
    experiment = _recipe(args.recipe, args.set)
    from csip.origins import origins_of
    from flows import look
    from flows.recipes import RECIPES

    look.show_config(experiment, origins_of(RECIPES[args.recipe](), args.set), as_json=args.json)


def _lineage(args: argparse.Namespace) -> None:
    from flows import look

    look.lineage(args.ref, _absolute(args.store), as_json=args.json)


def _snapshots(args: argparse.Namespace) -> None:
    from flows import maintenance

    maintenance.snapshots(_absolute(args.store), as_json=args.json)


def _verify(args: argparse.Namespace) -> int:
    from flows import maintenance

    return maintenance.check_store(_absolute(args.store), args.snapshot, deep=args.deep, as_json=args.json)


def _diff(args: argparse.Namespace) -> None:
    from flows import maintenance

    maintenance.compare(args.a, args.b, _absolute(args.store), as_json=args.json)


def _gc(args: argparse.Namespace) -> None:
    from flows import maintenance

    maintenance.clean(
        _absolute(args.store),
        args.drop,
        dry_run=args.dry_run,
        force=args.force,
        older_than=args.older_than,
        as_json=args.json,
    )


def _forget(args: argparse.Namespace) -> int:
    if (args.pid is None) == bool(args.snapshot):
        raise UsageError("forget: --pid and --snapshot go together: a number means a person within one snapshot.")
    from csip.maintenance.forget import Selector
    from flows import maintenance

    store = _absolute(args.store)
    if args.pid is not None:
        selector = Selector.of_person(args.snapshot, args.pid)
    elif args.tracklet:
        selector = Selector.of_tracklets(args.tracklet)
    else:
        selector = Selector.of_video(store, args.video)
    return maintenance.forget_person(store, selector, dry_run=args.dry_run, yes=args.yes, as_json=args.json)


def _days(text: str) -> timedelta:
    days = float(text)
    if not 0 <= days <= _MOST_DAYS:
        raise ValueError(text)
    return timedelta(days=days)


def _absolute(store: str) -> str:
    """Give a store's absolute path, or its address in object storage as it is."""
    if "://" not in store:
        return str(Path(store).resolve())
    bucket = store.removeprefix("s3://").partition("/")[0]
    if not store.startswith("s3://") or not bucket or set(bucket) & set("@:?"):
        raise UsageError(
            f"--store {store.partition('://')[0]}://...: expected a folder, or s3://BUCKET/PREFIX; who may "
            "enter there, and where it is, stands in the AWS_* variables of the environment."
        )
    return store.rstrip("/")


def _folder(store: str) -> str:
    """Give a store's absolute path, for commands that write files beside the tables."""
    if "://" in store:
        raise UsageError(
            f"--store {store}: found an address; checkpoints and reports are files, and this version keeps them in "
            "folders only. Expected a folder."
        )
    return _absolute(store)


def main(argv: list[str] | None = None) -> int:
    """Run one command and give its exit code."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    parser = make_parser()
    args = parser.parse_args(argv)
    from csip.errors import CsipError

    interrupted = threading.Event()
    code = 0
    try:
        if args.json and args.endless:
            raise UsageError(f"{args.command}: runs until it is told to stop, and has no one document to print.")
        with _leaving_soon(args.command, interrupted):
            code = args.run(args) or 0
    except UsageError as error:
        parser.error(str(error))
    except (CsipError, ValueError) as error:
        from flows.child import OURS, raised_by

        # A ValueError of our own says which value does not fit; any other is a bug and shows where.
        if not isinstance(error, CsipError) and not raised_by(error, *OURS):
            raise
        if not interrupted.is_set():
            sys.stderr.write(f"csip {args.command}: {error}\n")
            return 1
    except KeyboardInterrupt:
        interrupted.set()
    return 130 if interrupted.is_set() else code


@contextmanager
def _leaving_soon(command: str, interrupted: threading.Event) -> Iterator[None]:
    """Say at once that Ctrl-C was heard, and end within seconds of it.

    Ctrl-C reaches Prefect's temporary server too, and Prefect would wait minutes for its answer.
    """

    def leave() -> None:
        from flows import terminal

        terminal.ERR.show_cursor()
        _end_server()
        os._exit(130)

    def interrupt(*_: object) -> None:
        interrupted.set()
        sys.stderr.write(
            f"csip {command}: interrupted. What was committed stays; the same command goes on from there.\n"
        )
        timer = threading.Timer(_SECONDS_TO_LEAVE, leave)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_server() -> None:
    """End Prefect's temporary server: a signal that was meant for this process alone has not reached it."""
    from prefect.server.api.server import SubprocessASGIServer

    for server in SubprocessASGIServer._instances.values():
        if server.server_process:
            server.server_process.terminate()


if __name__ == "__main__":
    sys.exit(main())
