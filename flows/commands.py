"""The commands behind `csip`: call a flow, then say what came of it and where it lies."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from prefect import tags
from prefect.task_runners import ThreadPoolTaskRunner
from rich.text import Text

from csip import tables
from csip.config import DataConfig, Experiment
from csip.data.clips import choose_splits, read_groups
from csip.evaluation.average import summarise
from csip.evaluation.exchange import export_matrix, score_matrix
from csip.evaluation.matrix import read_matrix, write_matrix
from csip.ingest.check import find_sources
from csip.ingest.mot import check_target, write_mot
from csip.ingest.retrack import with_detections_of
from csip.lineage import History
from csip.models.checkpoints import checkpoint_ref
from csip.models.published import import_checkpoint
from csip.plain import to_plain
from csip.protocols import is_skeleton_only
from csip.tables import quote
from csip.types import Snapshot
from flows import terminal
from flows.ablate_csip import ROWS, Ablated, ablate_csip
from flows.build_skeletons import build_skeletons
from flows.evaluate_csip import evaluate_csip
from flows.lost import TAG
from flows.progress import server_needed
from flows.recipes import RECIPES, SKELETONS_ALONE
from flows.results import losses, result_values, tell_means, tell_results, tell_stage, tell_stages
from flows.train_csip import TrainedAll, train_csip


@contextmanager
def _watched(*, quiet: bool) -> Iterator[None]:
    """Run a flow under progress bars.

    Raises:
        ServerError: Prefect's server cannot be reached, or its temporary one does not start.
    """
    with server_needed(), terminal.progress_bars(quiet=quiet), tags(TAG):
        yield


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


def build(
    sources: tuple[str, ...],
    camera: str,
    experiment: Experiment,
    store: str,
    *,
    retrack: str = "",
    mot_out: Path | None = None,
    profile: bool = False,
    as_json: bool,
) -> None:
    """Run the flow "build-skeletons", and write its tracks for others to score where that is asked for.

    What cannot be built is refused before Prefect's server is started, which may take a minute.
    """
    videos = _look_ahead(sources, camera, experiment, store, retrack)
    if mot_out is not None:
        check_target(mot_out, videos)
    built = _build(sources, camera, experiment, store, retrack=retrack, quiet=as_json)
    if mot_out is not None:
        built["mot"] = [str(path) for path in write_mot(tables.open_snapshot(store, built["snapshot"]), mot_out)]
    if as_json:
        terminal.show_json(built)
        return
    _show_build(built)
    if mot_out is not None:
        terminal.OUT.print(terminal.facts("MOTChallenge tracks", [("file", path) for path in built["mot"]]))
    if profile:
        _show_profile(built["stages"])


def _look_ahead(sources: tuple[str, ...], camera: str, experiment: Experiment, store: str, retrack: str) -> int:
    """Count the files, or of a snapshot the videos, that a build would read; 0 of a benchmark.

    Raises:
        CsipError: there are none, as the flow itself would say.
    """
    if retrack:
        with_detections_of(store, retrack, experiment.extract)
        return len(tables.snapshot_row(store, retrack)["videos"])
    found = find_sources(sources, camera)
    return 0 if found is None else len(found.files)


_PHASES = {
    "model": "pose model",
    "load": "loading the pose model",
    "read": "waiting for frames",
    "finish": "waiting for the second thread at the end",
    "track": "second thread: tracking",
    "read_again": "second thread: waiting for frames to cut from",
    "encode": "second thread: cutting and encoding crops",
    "write": "second thread: writing tables",
}


def _show_profile(stages: Sequence[Mapping[str, Any]]) -> None:
    """Show where the time of the extraction went."""
    spent: Counter[str] = Counter()
    for one in stages:
        if one["stage"] == "extract_videos":
            spent.update(one["counts"]["seconds"])
    whole = spent["all"]
    rows = [(words, f"{spent[name]:.2f} s") for name, words in _PHASES.items()]
    rows.append(("the whole", f"{whole:.2f} s"))
    if whole:
        rows.append(("share of the pose model", f"{spent['model'] / whole:.1%}"))
    terminal.OUT.print(terminal.facts("Where the time went", rows))


def train(snapshot: str, experiment: Experiment, store: str, *, as_json: bool) -> None:
    """Run the flow "train-csip"."""
    trained = _train(snapshot, experiment, store, quiet=as_json)
    if as_json:
        terminal.show_json(trained)
    else:
        _show_train(trained)


def evaluate(checkpoint: Path, snapshot: str, experiment: Experiment, store: str, *, as_json: bool) -> None:
    """Run the flow "evaluate-csip"."""
    e, ref, begun = experiment, checkpoint_ref(checkpoint.resolve()), tables.now()
    choose_splits(tables.open_snapshot(store, snapshot), e.data)
    with _watched(quiet=as_json):
        results = evaluate_csip(
            ref.path, snapshot, store, e.data, e.embed, e.evaluate, e.skeleton, e.runtime, ref.sha256
        )
    told = {
        "store": store,
        "evaluated": [tell_results(one, store) for one in results],
        **tell_stages(results, History(store), begun),
    }
    if as_json:
        terminal.show_json(told)
        return
    _show_stages(told["stages"], told["reused"])
    for one in told["evaluated"]:
        _show_results(one)


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
    groups = read_groups(tables.open_snapshot(store, built["snapshot"]))
    told = {
        "snapshot": built["snapshot"],
        "groups": list(groups),
        "store": store,
        "seeds": [one.seed for one in done],
        "rows": {row: ROWS[row].text for row in rows},
        "scores": summarise([result_values(one.scores) for one in done]),
        "retrieval": summarise(
            [
                {"before stage 1": before, "after stage 1": after}
                for one in done
                for before in result_values(one.before).values()
                for after in result_values(one.retrieval).values()
            ]
        ),
        "runs": {str(one.seed): {"scores": one.scores.run_id, "retrieval": one.retrieval.run_id} for one in done},
        "seconds": round(sum(run.seconds for run in tables.find_runs(store, f"started >= {quote(begun)}")), 1),
    }
    if as_json:
        terminal.show_json(told)
    else:
        terminal.OUT.print(terminal.ablation(told))


def score(path: Path, protocol: str, experiment: Experiment, *, as_json: bool) -> None:
    """Score a file of distances and identities."""
    scored = score_matrix(read_matrix(path), experiment.evaluate, protocol)
    if as_json:
        terminal.show_json(to_plain(scored))
        return
    terminal.OUT.print(terminal.scores({scored.encoder: scored.figures}, scored.label))
    terminal.OUT.print(Text(scored.described + "\n", style="dim"))


def export(run: str, encoder: str, path: Path, store: str, *, as_json: bool) -> None:
    """Write an evaluation's distances and identities to a file."""
    matrix = export_matrix(store, run, encoder)
    write_matrix(path, matrix)
    queries, gallery = matrix.distance.shape
    told = {"file": str(path), "encoder": encoder, "queries": queries, "gallery": gallery}
    if as_json:
        terminal.show_json(told)
        return
    rows: list[tuple[str, object]] = [*told.items(), ("next", f"csip score {shlex.quote(str(path))}")]
    terminal.OUT.print(terminal.facts("Exported", rows))


def import_published(path: Path, store: str, dataset: str, *, as_json: bool) -> None:
    """Write a checkpoint of the published implementation as one of ours."""
    ref, spec, report = import_checkpoint(path, store, dataset)
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


def _build(
    sources: tuple[str, ...], camera: str, experiment: Experiment, store: str, *, retrack: str = "", quiet: bool
) -> dict[str, Any]:
    begun = tables.now()
    tables.prepare_store(store)
    with _watched(quiet=quiet):
        snapshot: Snapshot = build_skeletons(sources, store, camera, experiment.extract, experiment.runtime, retrack)
    done = tables.find_runs(store, f"started >= {quote(begun)}")
    lists = ("list_videos", "list_snapshot")
    listed: Mapping[str, Any] = next((run.counts for run in reversed(done) if run.stage in lists), {})
    return {
        "snapshot": snapshot.name,
        "store": store,
        "tables": dict(snapshot.tables),
        "counts": tables.snapshot_row(store, snapshot.name)["counts"],
        "listed": listed,
        "stages": [tell_stage(run) for run in done],
    }


def _train(snapshot: str, experiment: Experiment, store: str, *, quiet: bool) -> dict[str, Any]:
    begun, pinned = tables.now(), tables.open_snapshot(store, snapshot)
    _require_kind(experiment, pinned)
    choose_splits(pinned, experiment.data)
    with _watched(quiet=quiet):
        done: TrainedAll = train_csip(snapshot, store, experiment)
    history = History(store)
    trainings = [
        tell_results(one.results, store)
        | {
            "checkpoint": to_plain(one.checkpoint),
            "report": to_plain(one.report),
            "losses": losses(history, one.results),
        }
        for one in done.trained
    ]
    refs = [one.results for one in done.trained] + ([done.mean] if done.mean else [])
    mean = tell_means(done.mean) if done.mean else []
    return {"store": store, "trained": trainings, "mean": mean, **tell_stages(refs, history, begun)}


def _require_kind(experiment: Experiment, snapshot: Snapshot) -> None:
    """Refuse to train on pictures by a recipe for skeletons alone, and the reverse.

    Raises:
        ValueError: the recipe is for the other kind of snapshot.
    """
    alone = is_skeleton_only(choose_splits(snapshot, DataConfig(protocol="all", split="all"))[0].protocol)
    if alone != (experiment.name in SKELETONS_ALONE):
        found, other = ("skeletons alone", "pictures") if alone else ("pictures", "skeletons alone")
        fitting = [name for name in RECIPES if (name in SKELETONS_ALONE) == alone]
        raise ValueError(
            f"Recipe {experiment.name}: trains on {other}, but snapshot {snapshot.name} holds {found}. Name one of the "
            f"recipes for those: {', '.join(fitting)}."
        )


def _show_build(built: Mapping[str, Any]) -> None:
    counts, listed = built["counts"], built["listed"]
    extracted = [one["counts"] for one in built["stages"] if one["stage"] == "extract_videos"]
    rows = _video_rows(counts, listed, extracted) if listed else _benchmark_rows(counts)
    rows.append(("snapshot", built["snapshot"]))
    rows.append(("table versions", ", ".join(f"{name}@{version}" for name, version in built["tables"].items())))
    rows.append(("store", built["store"]))
    terminal.OUT.print(terminal.facts("Skeletons", rows))
    _show_stages(built["stages"], [])


def _benchmark_rows(counts: Mapping[str, Any]) -> list[tuple[str, object]]:
    plain = [(name, value) for name, value in counts.items() if not isinstance(value, Mapping)]
    return [(name.replace("_", " "), value) for name, value in plain]


def _video_rows(
    counts: Mapping[str, Any], listed: Mapping[str, Any], extracted: Sequence[Mapping[str, Any]]
) -> list[tuple[str, object]]:
    # Not what the snapshot counted: it may be one that was published before, by a build without these.
    failed = sum(each["quarantined"] for each in extracted)
    new = listed["videos"] - listed["already_extracted"] - failed
    again = "" if new else ": nothing was extracted again"
    rows: list[tuple[str, object]] = [
        (
            "videos",
            f"{listed['videos']} ({new} extracted now, {listed['already_extracted']} already in the store{again})",
        )
    ]
    if failed:
        rows.append(("videos left out", f"{failed} that could not be worked on"))
        told = (item for each in extracted for item in each.items())
        rows += [(f"  {key}", value) for key, value in told if key.startswith("left out ")]
    if counts.get("partial_videos"):
        text = f"{counts['partial_videos']} that break off, kept as far as they go; the table `videos` says why"
        rows.append(("partial videos", text))
    for name in ("forgotten_files", "unreadable_files", "unreadable_folders", "duplicate_files"):
        if listed.get(name):
            rows.append((name.replace("_", " "), listed[name]))
    rows += [(f"  {key}", value) for key, value in listed.items() if key.startswith("unreadable ")]
    if listed.get("other_files"):
        rows.append(("other files", f"not looked at, by their names: {terminal.listing(listed['other_files'])}"))
    rows += [(name.replace("_", " "), counts[name]) for name in ("frames", "detections")]
    if any(counts.get("people_left_out", {}).values()):
        rows.append(("people left out", terminal.listing(counts["people_left_out"])))
    dropped = ", ".join(f"{number} {reason}" for reason, number in counts["dropped"].items())
    rows.append(("tracklets", f"{counts['tracklets']} kept in {counts['crops']} crops; dropped: {dropped}"))
    rules = terminal.listing(counts["rules"])
    rows.append(("tracking rules", "none was needed" if rules == "none" else rules))
    rows.append(("mean keypoint confidence", f"{counts['keypoint_confidence']:.3f}"))
    if "no_protocol" in counts:
        rows.append(("not enough to train", counts["no_protocol"]))
    else:
        out = ", ".join(f"{number} {reason}" for reason, number in counts["left_out_of_protocol"].items())
        rows.append(("people", f"{counts['train_people']} to train, {counts['test_people']} to test; left out: {out}"))
    return rows


def _show_train(told: Mapping[str, Any]) -> None:
    _show_stages(told["stages"], told["reused"])
    for one in told["trained"]:
        if one["losses"]:
            terminal.OUT.print(terminal.losses(one["losses"]))
        _show_results(one)
        rows = [("checkpoint", one["checkpoint"]["path"]), ("report", one["report"]["path"])]
        rows.append(("lineage", f"csip lineage {one['run_id']} --store {shlex.quote(told['store'])}"))
        terminal.OUT.print(terminal.facts("Where it lies", rows))
    for mean in told["mean"]:
        terminal.OUT.print(terminal.means(mean["scores"], mean["protocol"]))
        _show_described(mean["described"])
    if told["mean"]:
        rows = [("lineage", f"csip lineage {told['mean'][0]['run_id']} --store {shlex.quote(told['store'])}")]
        terminal.OUT.print(terminal.facts("Where the means come from", rows))


def _show_results(told: Mapping[str, Any]) -> None:
    terminal.OUT.print(terminal.scores(told["scores"], told["label"]))
    _show_described(told["described"])


def _show_described(described: Mapping[str, str]) -> None:
    """Print a protocol in words, and of each encoder what it ranked otherwise than the first."""
    main = next((name for name in described if name.startswith("trained")), next(iter(described)))
    terminal.OUT.print(Text(described[main] + "\n", style="dim"))
    for name, text in described.items():
        if _ranked(text) != _ranked(described[main]):
            terminal.OUT.print(Text(f"{name}: {_ranked(text)}\n", style="dim"))


def _ranked(text: str) -> str:
    """Pick out of a protocol in words what one item of the ranking is; all else is the same for every encoder."""
    return "ranked: " + text.partition("ranked: ")[2].partition(". ")[0]


def _show_stages(done: Sequence[Mapping[str, Any]], reused: Sequence[Mapping[str, Any]]) -> None:
    # A line a stage, not a line a video.
    alike: dict[tuple[str, str], list[float]] = {}
    for run in done:
        alike.setdefault((run["stage"], run["device"]), []).append(run["seconds"])
    rows = [
        (name, f"{sum(each):.1f} s on {device}" + (f" in {len(each)} runs" if len(each) > 1 else ""))
        for (name, device), each in alike.items()
    ]
    rows += [(run["stage"], f"nothing to do, done before by run {run['run_id']}") for run in reused]
    terminal.OUT.print(terminal.facts("Stages", rows))
