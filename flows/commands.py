"""The commands behind `csip`: call a flow, then say what came of it and where it lies."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import httpx
from prefect.task_runners import ThreadPoolTaskRunner
from rich.text import Text

from csip import tables
from csip.config import Experiment, to_plain
from csip.errors import CsipError
from csip.evaluation.ablation import summarise
from csip.evaluation.protocol import label
from csip.lineage import History, flatten
from csip.models.checkpoints import checkpoint_ref
from csip.models.published import import_checkpoint
from csip.origins import leaves
from csip.tables import RunRecord, quote
from csip.types import ResultsRef, Snapshot
from flows import terminal
from flows.ablate_csip import ROWS, Ablated, ablate_csip
from flows.build_skeletons import build_skeletons
from flows.child import raised_by
from flows.evaluate_csip import evaluate_csip
from flows.train_csip import Trained, train_csip


class ServerError(CsipError):
    """Prefect's server, which keeps the account of a flow, cannot be used."""


@contextmanager
def _watched(*, quiet: bool) -> Iterator[None]:
    """Run a flow under progress bars.

    Raises:
        ServerError: Prefect's server cannot be reached, or its temporary one does not start.
    """
    try:
        with terminal.progress_bars(quiet=quiet):
            yield
    except (RuntimeError, httpx.HTTPError) as error:
        if not isinstance(error, httpx.HTTPError) and not raised_by(error, "prefect"):
            raise
        url = os.environ.get("PREFECT_API_URL")
        where, cure = (f"at {url}", "unset PREFECT_API_URL") if url else ("of this process", "set PREFECT_API_URL")
        raise ServerError(
            f"Prefect's server {where}: cannot be used ({error}). Expected one that answers; start one with "
            f"`prefect server start`, look whether PREFECT_HOME can be written, or {cure}."
        ) from error


def demo(experiment: Experiment, store: str, *, as_json: bool) -> None:
    """Run both flows on the shipped video."""
    with as_file(files("csip") / "assets" / "pedestrians.mp4") as video:
        built = _build((str(video),), "pedestrians", experiment, store, quiet=as_json)
    trained = _train(built["snapshot"], experiment, store, quiet=as_json)
    if as_json:
        terminal.show_json({"build": built, "train": trained})
        return
    _show_build(built)
    _show_train(trained)


def build(sources: tuple[str, ...], camera: str, experiment: Experiment, store: str, *, as_json: bool) -> None:
    """Run the flow "build-skeletons"."""
    built = _build(sources, camera, experiment, store, quiet=as_json)
    if as_json:
        terminal.show_json(built)
    else:
        _show_build(built)


def train(snapshot: str, experiment: Experiment, store: str, *, as_json: bool) -> None:
    """Run the flow "train-csip"."""
    trained = _train(snapshot, experiment, store, quiet=as_json)
    if as_json:
        terminal.show_json(trained)
    else:
        _show_train(trained)


def evaluate(checkpoint: Path, snapshot: str, experiment: Experiment, store: str, *, as_json: bool) -> None:
    """Run the flow "evaluate-csip"."""
    ref, begun = checkpoint_ref(checkpoint.resolve()), tables.now()
    tables.open_snapshot(store, snapshot)
    with _watched(quiet=as_json):
        results = evaluate_csip(ref, snapshot, store, experiment.embed, experiment.evaluate, experiment.runtime)
    told = _tell_results(results, store, begun)
    if as_json:
        terminal.show_json(told)
    else:
        _show_results(told)


def ablate(
    experiment: Experiment, store: str, seeds: int, rows: tuple[str, ...], parallel: int, *, as_json: bool
) -> None:
    """Build the recipe's benchmark where the store lacks it, and run the flow "ablate-csip" on it."""
    built = _build((f"{experiment.dataset}:",), "", experiment, store, quiet=as_json)
    begun = tables.now()
    flow = ablate_csip.with_options(task_runner=ThreadPoolTaskRunner(max_workers=parallel))  # type: ignore[arg-type]
    chosen = tuple(range(experiment.seed, experiment.seed + seeds))
    with _watched(quiet=as_json):
        done: tuple[Ablated, ...] = flow(built["snapshot"], store, experiment, chosen, rows)
    told = {
        "snapshot": built["snapshot"],
        "store": store,
        "seeds": [one.seed for one in done],
        "rows": {row: ROWS[row].text for row in rows},
        "scores": summarise([_result_values(one.scores) for one in done]),
        "retrieval": summarise(
            [
                {"before stage 1": before, "after stage 1": after}
                for one in done
                for before in _result_values(one.before).values()
                for after in _result_values(one.retrieval).values()
            ]
        ),
        "runs": {str(one.seed): {"scores": one.scores.run_id, "retrieval": one.retrieval.run_id} for one in done},
        "seconds": round(sum(run.seconds for run in tables.find_runs(store, f"started >= {quote(begun)}")), 1),
    }
    if as_json:
        terminal.show_json(told)
    else:
        terminal.OUT.print(terminal.ablation(told))


def _result_values(results: ResultsRef) -> dict[str, dict[str, float]]:
    """Read an evaluation: encoder -> name of a figure -> figure."""
    values: dict[str, dict[str, float]] = {}
    for row in tables.read(results.table, where=f"run_id = {quote(results.run_id)}").to_pylist():
        values.setdefault(row["encoder"], {})[row["name"]] = row["value"]
    return values


def show_config(experiment: Experiment, origins: Mapping[str, str], *, as_json: bool) -> None:
    """Print every number of a recipe, one a line, in the spelling that --set takes, and where it comes from."""
    if as_json:
        terminal.show_json({"values": to_plain(experiment), "sources": dict(origins)})
        return
    lines = {}
    for name, value in leaves(experiment).items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        lines[name] = f"{name}={text.lower() if value is None or isinstance(value, bool) else text}"
    width = max(map(len, lines.values()))
    for name, line in lines.items():
        terminal.OUT.print(Text.assemble(line.ljust(width), (f"  # {origins[name]}", "dim")))


def import_published(path: Path, store: str, *, as_json: bool) -> None:
    """Write a checkpoint of the published implementation as one of ours."""
    ref, spec, report = import_checkpoint(path, store)
    if as_json:
        terminal.show_json({"checkpoint": to_plain(ref), "spec": to_plain(spec), "report": to_plain(report)})
        return
    rows: list[tuple[str, object]] = [
        ("file", f"{path}, SHA-256 {report.sha256[:12]}"),
        ("parameters", f"{report.parameters} in {report.placed} tensors"),
        ("people, cameras", f"{len(spec.pids)}, {len(spec.cameras)}"),
        ("unused tensors", f"{len(report.unused)}{': ' if report.unused else ''}{', '.join(report.unused)}"),
        ("not in the file", ", ".join(report.kept)),
        ("checkpoint", ref.path),
        ("next", f"csip evaluate-csip {shlex.quote(ref.path)} --store {shlex.quote(store)} --snapshot NAME"),
    ]
    terminal.OUT.print(terminal.facts("Imported", rows))


def lineage(ref: str, store: str, *, as_json: bool) -> None:
    """Print what a thing was made from."""
    node = History(store).find(ref)
    if as_json:
        terminal.show_json(to_plain(node))
    else:
        terminal.show_lineage(node)


def _build(sources: tuple[str, ...], camera: str, experiment: Experiment, store: str, *, quiet: bool) -> dict[str, Any]:
    begun = tables.now()
    tables.prepare_store(store)
    with _watched(quiet=quiet):
        snapshot: Snapshot = build_skeletons(sources, store, camera, experiment.extract, experiment.runtime)
    done = tables.find_runs(store, f"started >= {quote(begun)}")
    listed: Mapping[str, Any] = next((run.counts for run in reversed(done) if run.stage == "list_videos"), {})
    return {
        "snapshot": snapshot.name,
        "store": store,
        "tables": dict(snapshot.tables),
        "counts": tables.snapshot_row(store, snapshot.name)["counts"],
        "listed": listed,
        "stages": [_stage(run) for run in done],
    }


def _train(snapshot: str, experiment: Experiment, store: str, *, quiet: bool) -> dict[str, Any]:
    begun = tables.now()
    tables.open_snapshot(store, snapshot)
    with _watched(quiet=quiet):
        trained: Trained = train_csip(snapshot, store, experiment)
    told = _tell_results(trained.results, store, begun)
    return told | {"checkpoint": to_plain(trained.checkpoint), "report": to_plain(trained.report)}


def _tell_results(results: ResultsRef, store: str, begun: str) -> dict[str, Any]:
    rows = tables.read(results.table, where=f"run_id = {quote(results.run_id)}").to_pylist()
    behind = {n.made_by.run_id: n.made_by for n in flatten(History(store).find(results.run_id)) if n.made_by}
    done = tables.find_runs(store, f"started >= {quote(begun)}")
    now = {run.run_id for run in done}
    reused = sorted((run for run in behind.values() if run.run_id not in now), key=lambda run: run.started)
    training = [run for run in behind.values() if run.stage in ("pretrain_visual", "stage1", "stage2")]
    return {
        "run_id": results.run_id,
        "store": store,
        "protocol": rows[0]["described"],
        "label": label(rows[0]["protocol"]),
        "scores": _result_values(results),
        "losses": _losses(store, sorted(training, key=lambda run: run.started)),
        "stages": [_stage(run) for run in done],
        "reused": [_stage(run) for run in reused],
    }


def _losses(store: str, runs: Sequence[RunRecord]) -> dict[str, list[float]]:
    out = {}
    for run in runs:
        where = f"run_id = {quote(run.run_id)} AND name = 'loss'"
        table = tables.read(tables.current(store, "metrics"), where=where).sort_by("step")
        out[run.stage] = table["value"].to_pylist()
    return out


def _stage(run: RunRecord) -> dict[str, Any]:
    return {name: getattr(run, name) for name in ("run_id", "stage", "seconds", "device", "started", "counts")}


def _show_build(built: Mapping[str, Any]) -> None:
    rows = _video_rows(built["counts"], built["listed"]) if built["listed"] else _benchmark_rows(built["counts"])
    rows.append(("snapshot", built["snapshot"]))
    rows.append(("table versions", ", ".join(f"{name}@{version}" for name, version in built["tables"].items())))
    rows.append(("store", built["store"]))
    terminal.OUT.print(terminal.facts("Skeletons", rows))
    _show_stages(built["stages"], [])


def _benchmark_rows(counts: Mapping[str, Any]) -> list[tuple[str, object]]:
    plain = [(name, value) for name, value in counts.items() if not isinstance(value, Mapping)]
    return [(name.replace("_", " "), value) for name, value in plain]


def _video_rows(counts: Mapping[str, Any], listed: Mapping[str, Any]) -> list[tuple[str, object]]:
    failed = counts["videos_left_out"]
    new = listed["videos"] - listed["already_extracted"] - failed
    again = "" if new else ": nothing was extracted again"
    rows: list[tuple[str, object]] = [
        (
            "videos",
            f"{listed['videos']} ({new} extracted now, {listed['already_extracted']} already in the store{again})",
        )
    ]
    if failed:
        rows.append(("videos left out", f"{failed} that could not be decoded; the table `videos` says why"))
    for name in ("unreadable_files", "duplicate_files"):
        if listed[name]:
            rows.append((name.replace("_", " "), listed[name]))
    rows += [(f"  {key}", value) for key, value in listed.items() if key.startswith("unreadable ")]
    rows += [(name.replace("_", " "), counts[name]) for name in ("frames", "detections")]
    dropped = ", ".join(f"{number} {reason}" for reason, number in counts["dropped"].items())
    rows.append(("tracklets", f"{counts['tracklets']} kept in {counts['crops']} crops; dropped: {dropped}"))
    rows.append(("mean keypoint confidence", f"{counts['keypoint_confidence']:.3f}"))
    if "no_protocol" in counts:
        rows.append(("not enough to train", counts["no_protocol"]))
    else:
        out = ", ".join(f"{number} {reason}" for reason, number in counts["left_out_of_protocol"].items())
        rows.append(("people", f"{counts['train_people']} to train, {counts['test_people']} to test; left out: {out}"))
    return rows


def _show_train(told: Mapping[str, Any]) -> None:
    terminal.OUT.print(terminal.losses(told["losses"]))
    _show_results(told)
    rows = [("checkpoint", told["checkpoint"]["path"]), ("report", told["report"]["path"])]
    rows.append(("lineage", f"csip lineage {told['run_id']} --store {shlex.quote(told['store'])}"))
    terminal.OUT.print(terminal.facts("Where it lies", rows))


def _show_results(told: Mapping[str, Any]) -> None:
    _show_stages(told["stages"], told["reused"])
    terminal.OUT.print(terminal.scores(told["scores"], told["label"]))
    terminal.OUT.print(Text(told["protocol"] + "\n", style="dim"))


def _show_stages(done: Sequence[Mapping[str, Any]], reused: Sequence[Mapping[str, Any]]) -> None:
    rows = [(run["stage"], f"{run['seconds']:.1f} s on {run['device']}") for run in done]
    rows += [(run["stage"], f"nothing to do, done before by run {run['run_id']}") for run in reused]
    terminal.OUT.print(terminal.facts("Stages", rows))
