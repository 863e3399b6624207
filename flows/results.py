"""What the store holds of results, as the commands tell it and the Prefect UI shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from csip import tables
from csip.evaluation.average import STD
from csip.evaluation.protocol import label
from csip.lineage import History, flatten
from csip.tables import RunRecord, quote
from csip.types import ResultsRef

_TRAININGS = ("pretrain_visual", "stage1", "stage2", "train_skeletons")


def result_values(results: ResultsRef) -> dict[str, dict[str, float]]:
    """Read an evaluation: encoder -> name of a figure -> figure."""
    return _values(_rows(results))


def is_mean(values: Mapping[str, Mapping[str, float]]) -> bool:
    """Tell what `average` wrote from what `evaluate` wrote, by the figures of each encoder."""
    return any(name.startswith(f"{STD}/") for row in values.values() for name in row)


def tell_results(results: ResultsRef, store: str) -> dict[str, Any]:
    """Tell what `evaluate` wrote: its scores, and the protocol in words."""
    rows = _rows(results)
    return {
        "run_id": results.run_id,
        "store": store,
        "protocol": rows[0]["protocol"],
        "split": rows[0]["split"],
        "described": {row["encoder"]: row["described"] for row in rows},
        "label": label(rows[0]["protocol"], rows[0]["split"]),
        "scores": _values(rows),
    }


def _rows(results: ResultsRef) -> list[dict[str, Any]]:
    return tables.read(results.table, where=f"run_id = {quote(results.run_id)}").to_pylist()  # type: ignore[no-any-return]


def _values(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        values.setdefault(row["encoder"], {})[row["name"]] = row["value"]
    return values


def tell_means(results: ResultsRef) -> list[dict[str, Any]]:
    """Tell what `average` wrote: for each protocol, encoder -> figure -> mean, std and n."""
    rows = _rows(results)
    told = []
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        own = {(row["encoder"], row["name"]): row for row in rows if row["protocol"] == protocol}
        scores: dict[str, dict[str, dict[str, float]]] = {}
        for (encoder, name), row in own.items():
            if (encoder, f"{STD}/{name}") in own:
                spread = {"mean": row["value"], "std": own[encoder, f"{STD}/{name}"]["value"]}
                scores.setdefault(encoder, {})[name] = spread | {"n": own[encoder, "num_trainings"]["value"]}
        described = {encoder: row["described"] for (encoder, _), row in own.items()}
        told.append({"run_id": results.run_id, "protocol": protocol, "described": described, "scores": scores})
    return told


def tell_stages(refs: Sequence[ResultsRef], history: History, begun: str) -> dict[str, Any]:
    """Tell what ran since `begun`, and what of an earlier time the results stand on."""
    nodes = [node for ref in refs for node in flatten(history.find(ref.run_id))]
    behind = {n.made_by.run_id: n.made_by for n in nodes if n.made_by}
    done = [run for run in history.runs if run.started >= begun]
    now = {run.run_id for run in done}
    reused = sorted((run for run in behind.values() if run.run_id not in now), key=lambda run: run.started)
    return {"stages": [tell_stage(run) for run in done], "reused": [tell_stage(run) for run in reused]}


def losses(history: History, results: ResultsRef) -> dict[str, list[float]]:
    """Read the loss of every epoch of the trainings behind a result, by stage."""
    nodes = flatten(history.find(results.run_id))
    runs = {node.made_by.run_id: node.made_by for node in nodes if node.made_by and node.made_by.stage in _TRAININGS}
    out = {}
    for run in sorted(runs.values(), key=lambda run: run.started):
        where = f"run_id = {quote(run.run_id)} AND name = 'loss'"
        table = tables.read(tables.current(history.store, "metrics"), where=where).sort_by("step")
        out[run.stage] = table["value"].to_pylist()
    return out


def tell_stage(run: RunRecord) -> dict[str, Any]:
    """Tell what ran, for how long, and what it counted."""
    return {name: getattr(run, name) for name in ("run_id", "stage", "seconds", "device", "started", "counts")}
