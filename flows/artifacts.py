"""What a finished stage shows in the Prefect UI, beside its progress: counts, scores, where it lies, its lineage."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from csip.lineage import History
from csip.types import FileRef, ResultsRef, Snapshot
from flows.progress import artifact_key
from flows.results import is_mean, tell_means, tell_results
from flows.terminal import lineage_text, mean_rows, score_rows


def show_outcome(task: str, store: str, value: object, counts: Mapping[str, Any]) -> None:
    """Create the artifacts of a finished stage, in the task run that calls this.

    Args:
        task: the task run's name, which becomes the start of every key.
        store: the folder of the store's tables.
        value: the reference that the stage returned.
        counts: what it kept, and what it dropped and why.
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
        path = Path(value.path).absolute()
        where = f"On the machine that ran this task:\n\n    {path}\n    {path.as_uri()}"
        text = f"# Report\n\n{where}\n\nSHA-256 `{value.sha256}`"
        create_markdown_artifact(text, key=f"{key}-page", description=f"{task}: where the page lies")


def _show_results(key: str, store: str, results: ResultsRef) -> None:
    told = tell_results(results, store)
    values = told["scores"]
    if is_mean(values):
        shown = [(one["protocol"], mean_rows(one["scores"])) for one in tell_means(results)]
    elif all("mean_ap" in row for row in values.values()):
        shown = [(told["label"], score_rows(values))]
    else:
        # Figures of another kind, such as of skeletons that look for pictures: as they are.
        rows = [[encoder, name, f"{value:.4g}"] for encoder, row in values.items() for name, value in row.items()]
        shown = [(told["label"], [["encoder", "figure", "value"], *rows])]
    for label, (head, *rows) in shown:
        table = [dict(zip(head, row, strict=True)) for row in rows]
        create_table_artifact(table, key=artifact_key(f"{key}-scores-{label}"), description=f"Scores ({label})")
    _show_lineage(key, store, results.run_id, "")


def _show_lineage(key: str, store: str, ref: str, facts: str) -> None:
    command = shlex.join(["csip", "lineage", ref, "--store", store])
    text = f"{facts}`{command}`\n\n```\n{lineage_text(History(store).find(ref))}\n```"
    create_markdown_artifact(text, key=f"{key}-lineage", description=f"What {ref} was made from")


def _flat(counts: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, object]]:
    for name, value in counts.items():
        label = f"{within}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{label}: ")
        else:
            yield label, value
