"""What was typed, looked at and handed to what does it: one function a command, each taking the parsed words.

What was typed is looked at first: the flows take seconds to import.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any


class UsageError(Exception):
    """What was typed makes no sense; exit code 2."""


def _recipe(name: str, assignments: list[str], *, here: bool = True) -> Any:
    """Take a recipe with what is set; `here`: for work on this machine, which must have its device."""
    from csip.device import resolve_device
    from flows.overrides import with_overrides
    from flows.recipes import RECIPES

    if name not in RECIPES:
        raise UsageError(f"found no recipe {name!r}; there are: {', '.join(RECIPES)}.")
    try:
        experiment = with_overrides(RECIPES[name](), assignments)
        if here:
            resolve_device(experiment.runtime.device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return experiment


def demo(args: argparse.Namespace) -> None:
    """Run everything on the video that ships with CSIP."""
    experiment = _recipe("demo", args.set)
    from flows import commands

    commands.demo(experiment, str(Path(args.out).resolve()), as_json=args.json)


def _build_recipe(args: argparse.Namespace, *, here: bool = True) -> Any:
    """Take the recipe that was named, else that of the benchmark, else that of one's own data."""
    from flows.recipes import RECIPES

    first = args.source[0] if args.source else ""
    kind = first.partition(":")[0]
    return _recipe(args.recipe or (kind if kind in RECIPES and ":" in first else "video"), args.set, here=here)


def build(args: argparse.Namespace) -> None:
    """Videos to a published snapshot of tracklets, crops and skeletons."""
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


def check(args: argparse.Namespace) -> None:
    """Look whether a source can be built from, and what is in it; nothing is written."""
    experiment = _build_recipe(args)
    from flows import look

    look.check(tuple(args.source), experiment, as_json=args.json)


def train(args: argparse.Namespace) -> None:
    """A snapshot to a trained network, its scores and a report."""
    experiment = _recipe(args.recipe, args.set)
    from flows import commands

    commands.train(args.snapshot, experiment, _with_files(args.store), as_json=args.json)


def evaluate(args: argparse.Namespace) -> None:
    """A checkpoint and a snapshot to scores."""
    experiment = _recipe("video", args.set)
    from flows import commands

    commands.evaluate(Path(args.checkpoint), args.snapshot, experiment, _absolute(args.store), as_json=args.json)


def score(args: argparse.Namespace) -> None:
    """A file of distances and identities, of any model, to scores."""
    experiment = _recipe("video", args.set)
    from flows import commands

    commands.score(Path(args.file), args.protocol, experiment, as_json=args.json)


def export(args: argparse.Namespace) -> None:
    """A result's distances and identities to a file that anybody can score."""
    from flows import commands

    commands.export(args.result, args.encoder, Path(args.file).resolve(), _absolute(args.store), as_json=args.json)


def ablate(args: argparse.Namespace) -> None:
    """Train with and without each part of the method, over several seeds."""
    experiment = _recipe(args.recipe, args.set)
    from flows import commands
    from flows.ablate_csip import ROWS, side_by_side

    rows = tuple(dict.fromkeys(args.rows))
    if not set(rows) <= set(ROWS):
        raise UsageError(f"--rows {args.rows}: found letters other than those of the table: {''.join(ROWS)}.")
    runtime, parallel = side_by_side(experiment.runtime, args.parallel)
    experiment = replace(experiment, runtime=runtime)
    commands.ablate(experiment, _with_files(args.store), args.seeds, rows, parallel, as_json=args.json)


def import_checkpoint(args: argparse.Namespace) -> None:
    """A checkpoint of the published implementation to one of ours."""
    store = _with_files(args.store)
    from flows import commands

    commands.import_published(Path(args.file).resolve(), store, args.dataset, as_json=args.json)


def _plan(args: argparse.Namespace, *, here: bool) -> Any:
    """Take the recipe that was named, else that of the demo for its video, else as builds do."""
    named = args.source or args.recipe
    experiment = _build_recipe(args, here=here) if named else _recipe("demo", args.set, here=here)
    store = _absolute(args.store)
    from flows.deploy import Plan

    return Plan(experiment, tuple(args.source), store, args.camera, args.pool, args.train_after_builds)


def deploy(args: argparse.Namespace) -> None:
    """Make the flows' Prefect deployments, with their work pool and automations."""
    plan = _plan(args, here=False)
    from flows import operate

    operate.deploy_flows(plan, plugin=not args.no_plugin, as_json=args.json)


def serve(args: argparse.Namespace) -> None:
    """Run Prefect's server and UI, the deployments and a worker on this machine."""
    plan = _plan(args, here=True)
    from flows import operate

    operate.serve_flows(plan, plugin=not args.no_plugin, port=args.port, at_once=args.limit)


def worker(args: argparse.Namespace) -> None:
    """Run Prefect's worker; it ends only when its runs have saved what they have."""
    from flows.worker import work

    work(args.pool, args.limit, healthcheck=args.with_healthcheck)


def join(args: argparse.Namespace) -> None:
    """Lend this machine to the trainings of a flow that runs on another one."""
    if args.node >= args.nodes:
        raise UsageError(f"--node {args.node}: expected 1 to {args.nodes - 1}; the flow's own machine is 0.")
    experiment = _recipe("video", [*args.set, f"runtime.nodes={args.nodes}", f"runtime.rendezvous={args.address}"])
    from flows import operate

    operate.join_trainings(experiment.runtime, args.node)


def config(args: argparse.Namespace) -> None:
    """Print every number of a recipe and where it comes from."""
    experiment = _recipe(args.recipe, args.set)
    from csip.origins import origins_of
    from flows import look
    from flows.recipes import RECIPES

    look.show_config(experiment, origins_of(RECIPES[args.recipe](), args.set), as_json=args.json)


def lineage(args: argparse.Namespace) -> None:
    """Walk from a result back to the videos it came from."""
    from flows import look

    look.lineage(args.ref, _absolute(args.store), as_json=args.json)


def snapshots(args: argparse.Namespace) -> None:
    """List what a store publishes."""
    from flows import maintenance

    maintenance.snapshots(_absolute(args.store), as_json=args.json)


def verify(args: argparse.Namespace) -> int:
    """Look whether a store is whole; exit code 1 where it is not."""
    from flows import maintenance

    return maintenance.check_store(_absolute(args.store), args.snapshot, deep=args.deep, as_json=args.json)


def diff(args: argparse.Namespace) -> None:
    """Say what tells two snapshots apart."""
    from flows import maintenance

    maintenance.compare(args.a, args.b, _absolute(args.store), as_json=args.json)


def gc(args: argparse.Namespace) -> None:
    """Merge small files, and give back what no snapshot, tag or run names."""
    from flows import maintenance

    maintenance.clean(
        _absolute(args.store),
        args.drop,
        dry_run=args.dry_run,
        force=args.force,
        older_than=args.older_than,
        detections=args.detections,
        as_json=args.json,
    )


def forget(args: argparse.Namespace) -> int:
    """Remove a person or a video from all tables for good; while no build runs."""
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


def _absolute(store: str) -> str:
    """Give a store's absolute path, or its address in object storage as it is."""
    from csip.tables import is_address

    if not is_address(store):
        return str(Path(store).resolve())
    bucket = store.removeprefix("s3://").partition("/")[0]
    if not store.startswith("s3://") or not bucket or set(bucket) & set("@:?"):
        raise UsageError(
            f"--store {store.partition('://')[0]}://...: expected a folder, or s3://BUCKET/PREFIX; who may "
            "enter there, and where it is, stands in the AWS_* variables of the environment."
        )
    return store.rstrip("/")


def _with_files(store: str) -> str:
    """Give a store's place, for commands that write files beside the tables: there must be a folder for them."""
    from csip.tables import folder

    store = _absolute(store)
    folder(store, "checkpoints")
    return store
