"""What a finished stage shows in the Prefect UI, beside its progress: counts, scores, where it lies, its lineage."""

from __future__ import annotations

import base64
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from csip.evaluation.charts import Curve, as_picture, line_chart
from csip.lineage import History
from csip.plain import from_plain
from csip.types import FileRef, ResultsRef, Snapshot
from flows.progress import artifact_key
from flows.results import is_mean, losses, tell_means, tell_results
from flows.terminal import mean_rows, score_rows
from flows.tree import lineage_text

_COLUMNS = 84
"""Letters that fit beside each other where the UI shows preformatted text, in a window of 1280 pixels."""


def show_outcome(task: str, store: str, value: object, counts: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Create the artifacts of a finished stage, in the task run that calls this.

    Args:
        task: the task run's name, which becomes the start of every key.
        store: the folder of the store's tables.
        value: the reference that the stage returned.
        counts: what it kept, and what it dropped and why.
        inputs: what it was given, by the names of its arguments, as `to_plain` writes it.
    """
    key = artifact_key(task)
    rows = [{"counted": name, "value": number} for name, number in _flat(counts)]
    if rows:
        create_table_artifact(rows, key=f"{key}-counts", description=f"{task}: what was kept, dropped and why")
    if isinstance(value, ResultsRef):
        _show_results(key, store, value)
    elif isinstance(value, Snapshot):
        versions = ", ".join(f"{name}@{version}" for name, version in value.tables.items())
        facts = f"Snapshot **{value.name}** in the store `{store}`\n\nTable versions: {versions}\n\n"
        _show_lineage(key, store, value.name, facts)
    elif isinstance(value, FileRef):
        told = _tell_report(store, from_plain(ResultsRef, inputs["results"])) if "results" in inputs else ""
        create_markdown_artifact(told + _where(value), key=f"{key}-page", description=f"{task}: what the page says")


def _show_results(key: str, store: str, results: ResultsRef) -> None:
    for label, (head, *rows) in _score_tables(store, results):
        table = [dict(zip(head, row, strict=True)) for row in rows]
        create_table_artifact(table, key=artifact_key(f"{key}-scores-{label}"), description=f"Scores ({label})")
    _show_lineage(key, store, results.run_id, "")


def _score_tables(store: str, results: ResultsRef) -> list[tuple[str, list[list[str]]]]:
    """Lay scores out: what kind they are, and a head with its rows; one table, or of means one a protocol."""
    told = tell_results(results, store)
    values = told["scores"]
    if is_mean(values):
        return [(one["protocol"], mean_rows(one["scores"])) for one in tell_means(results)]
    if all("mean_ap" in row for row in values.values()):
        return [(told["label"], score_rows(values))]
    # Figures of another kind, such as of skeletons that look for pictures: as they are.
    rows = [[encoder, name, f"{value:.4g}"] for encoder, row in values.items() for name, value in row.items()]
    return [(told["label"], [["encoder", "figure", "value"], *rows])]


def _tell_report(store: str, results: ResultsRef) -> str:
    """Tell of a report what may leave its store: figures and curves, no picture of a person."""
    parts = [f"# Scores ({label})\n\n{_grid(table)}" for label, table in _score_tables(store, results)]
    curves = losses(History(store), results)
    if curves:
        drawn = [[stage, _picture(stage, values)] for stage, values in curves.items()]
        parts.append(f"# Losses\n\n{_grid([['training', 'loss of every epoch'], *drawn])}")
    return "\n\n".join([*parts, ""])


def _picture(stage: str, values: Sequence[float]) -> str:
    curve = Curve(stage, range(1, len(values) + 1), values)
    chart = as_picture(line_chart([curve], title=stage, x_label="epoch", y_label="loss"))
    # The UI follows no link to a file, but shows a picture that is part of the text.
    return f"![{stage}](data:image/svg+xml;base64,{base64.b64encode(chart.encode()).decode()})"


def _grid(rows: Sequence[Sequence[str]]) -> str:
    """Write a head and rows as a Markdown table."""
    head, *others = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *others])


def _where(page: FileRef) -> str:
    path = Path(page.path).absolute()
    return (
        "# The whole page\n\n"
        "Tracklets, rankings and lineage are in one file with pictures of people. It stays where the store is, on "
        f"`{platform.node()}`; open it there in a browser, or copy it from there:\n\n"
        f"    {path}\n\nSHA-256 `{page.sha256}`"
    )


def _show_lineage(key: str, store: str, ref: str, facts: str) -> None:
    command = shlex.join(["csip", "lineage", ref, "--store", store])
    text = f"{facts}`{command}`\n\n```\n{lineage_text(History(store).find(ref), _COLUMNS)}\n```"
    create_markdown_artifact(text, key=f"{key}-lineage", description=f"What {ref} was made from")


def _flat(counts: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, object]]:
    for name, value in counts.items():
        label = f"{within}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{label}: ")
        else:
            yield label, value
