"""Figures of several trainings, summed up; stage `average` writes them down for splits and seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from csip import tables
from csip.evaluation.protocol import alone, count_valid, valid_words
from csip.evaluation.score import CONFIDENCE, HIGH, LOW
from csip.protocols import PROTOCOLS
from csip.tables import quote
from csip.types import Outcome, Output, Progress, ResultsRef, Stage

STD = "std"
"""Prefix of a figure's standard deviation among the names of table `results`."""


def summarise(trainings: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Give mean and standard deviation over trainings of every figure of every row.

    Args:
        trainings: for each, row -> name of a figure -> figure; all have the same rows. A figure that some lack, such as
            that of a class of queries which a split has none of, is summed up over the others.

    Returns:
        Row -> figure -> "mean", "std" (of the sample, n - 1 below; 0 for a single one) and "n", how many have it.

    Raises:
        ValueError: the trainings differ in their rows.
    """
    rows = list(trainings[0])
    if any(set(one) != set(rows) for one in trainings):
        raise ValueError(f"summarise: got trainings with rows {[sorted(one) for one in trainings]}, expected the same.")
    return {
        row: {
            name: _spread([one[row][name] for one in trainings if name in one[row]])
            for name in sorted({name for one in trainings for name in one[row]})
        }
        for row in rows
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "n": float(len(values))}


def average(out: Output, results: tuple[ResultsRef, ...], over: Literal["splits", "seeds"]) -> Stage[ResultsRef]:
    """Write mean and standard deviation of several evaluations, of each protocol by itself.

    Every figure NAME is the mean, std/NAME its deviation; `num_trainings` says over how many. Confidence intervals are
    left out: the means of their ends bound nothing. The words say which splits, and how many the literature takes.

    Args:
        out: the store.
        results: one evaluation each.
        over: what tells them apart.
    """
    yield Progress("average", 0, 1, "tables")
    found = [tables.read(one.table, where=f"run_id = {quote(one.run_id)}").to_pylist() for one in results]
    protocols = list(dict.fromkeys(rows[0]["protocol"] for rows in found))
    new = [
        row
        for protocol in protocols
        for row in _rows(out.run_id, [rows for rows in found if rows[0]["protocol"] == protocol], over)
    ]
    table = tables.upsert(out.store, "results", tables.from_rows("results", new))
    yield Progress("average", 1, 1, "tables")
    return Outcome(ResultsRef(table, out.run_id), {"evaluations": len(results), "protocols": ", ".join(protocols)})


def _rows(run_id: str, found: list[list[dict[str, object]]], over: str) -> Iterator[dict[str, object]]:
    figures = []
    for rows in found:
        values: dict[str, dict[str, float]] = {}
        for row in rows:
            if str(row["name"]).partition("/")[0] not in (LOW, HIGH, CONFIDENCE):
                values.setdefault(str(row["encoder"]), {})[str(row["name"])] = float(row["value"])  # type: ignore[arg-type]
        figures.append(values)
    first = {str(row["encoder"]): row for row in found[0]}
    splits = list(dict.fromkeys(str(rows[0]["split"]) for rows in found))
    for encoder, means in summarise(figures).items():
        valid = list(dict.fromkeys(count_valid(one[encoder]) for one in figures if "num_queries" in one[encoder]))
        told = {
            "run_id": run_id,
            "protocol": first[encoder]["protocol"],
            "split": ",".join(splits),
            "encoder": encoder,
            "described": _words(first[encoder], valid, len(found), splits, over),
            "encoder_digest": "",
            "checkpoint_sha": "",
        }
        yield told | {"name": "num_trainings", "value": float(len(found))}
        for name, spread in means.items():
            yield told | {"name": name, "value": spread["mean"]}
            yield told | {"name": f"{STD}/{name}", "value": spread["std"]}


def _words(row: Mapping[str, object], valid: list[str], count: int, splits: list[str], over: str) -> str:
    """Say what was averaged; `valid` are the different counts of valid queries, that of `row` first."""
    protocol = str(row["protocol"])
    there = PROTOCOLS[protocol].splits if protocol in PROTOCOLS else 1
    which = f": {', '.join(splits)}" if over == "splits" else ""
    fewer = f", where the literature has {there}" if over == "splits" and count < there else ""
    base = str(row["described"]).replace(alone(protocol, str(row["split"])), "")
    if len(valid) > 1:
        base = base.replace(valid_words(valid[0]), valid_words(", ".join(valid)))
    return f"{base} Mean and sample standard deviation over {count} {over}{which}{fewer}."
