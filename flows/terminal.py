"""What the command line shows: progress bars on standard error, results on standard output."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from csip import types
from csip.maintenance.keys import shorten
from flows.progress import LISTENER

OUT = Console(highlight=False, soft_wrap=True)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TOLD = ("loss", "learning_rate", "clips_per_second")
ERR = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[None]:
    """Draw a bar for every stage that reports, while the block runs; `quiet` draws nothing."""
    if quiet:
        yield
        return
    bars = Progress(
        TextColumn("{task.description}", table_column=Column(min_width=22, no_wrap=True)),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(table_column=Column(min_width=7, no_wrap=True)),
        TimeRemainingColumn(table_column=Column(min_width=7, no_wrap=True)),
        TextColumn("{task.fields[values]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=ERR,
        refresh_per_second=4,
    )
    ids: dict[str, TaskID] = {}

    def listen(record: types.Progress) -> None:
        if record.note:
            bars.console.print(Text(record.note, style="yellow"))
            return
        if record.stage not in ids:
            ids[record.stage] = bars.add_task(record.stage, total=None, unit=record.unit, values="")
        # The least a line must hold; all figures are in `metrics`, in TensorBoard's files and in the report.
        told = {name: record.values[name] for name in _TOLD if name in record.values} or record.values
        values = "  ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in told.items())
        bars.update(ids[record.stage], completed=record.done + record.part, total=record.total or None)
        if values:
            bars.update(ids[record.stage], values=values)

    token = LISTENER.set(listen)
    try:
        with bars:
            yield
    finally:
        LISTENER.reset(token)


def show_json(value: Any) -> None:
    """Print one JSON document."""
    OUT.file.write(json.dumps(value, indent=2, sort_keys=True) + "\n")


def facts(title: str, rows: Sequence[tuple[str, object]]) -> RenderableType:
    """Lay out names and values under a title, a line each: a path that wraps could not be copied."""
    width = max((len(name) for name, _ in rows), default=0)
    lines = [Text.assemble(("  " + name.ljust(width + 2), "dim"), str(value)) for name, value in rows]
    return Group(Text(title, style="bold"), *lines, Text(""))


def listing(value: object) -> object:
    """Write numbers by what they count in one line, "none" where there are none; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    return ", ".join(f"{number} {what}" for what, number in value.items() if number) or "none"


def scores(values: Mapping[str, Mapping[str, float]], label: str) -> RenderableType:
    """Lay out one row an encoder: mAP and its interval, mINP, rank-k, and how many queries counted.

    Lines are never cut to a width.

    Args:
        values: encoder -> name of a figure -> figure.
        label: what kind of scores these are.
    """
    return Group(Text(f"Scores ({label})", style="bold"), *_columns(score_rows(values), left=1), Text(""))


def score_rows(values: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Give a head, and a row of figures for each encoder, the best first; `values` as for `scores`."""
    shown = _figures(values)
    confidence = next((row["confidence"] for row in values.values() if "confidence" in row), 0.0)
    rows = [["encoder", *(_heading(name, confidence) for name in shown), "valid queries"]]
    for encoder, row in sorted(values.items(), key=lambda item: -item[1]["mean_ap"]):
        figures = [_percent(row, name) for name in shown]
        rows.append([encoder, *figures, f"{row['num_valid_queries']:.0f} of {row['num_queries']:.0f}"])
    return rows


def means(values: Mapping[str, Mapping[str, Mapping[str, float]]], label: str) -> RenderableType:
    """Lay out mean and standard deviation of several trainings, one row an encoder.

    Args:
        values: encoder -> name of a figure -> its mean, std and n.
        label: what kind of scores these are.
    """
    title = Text(f"Mean of several trainings ({label})", style="bold")
    return Group(title, *_columns(mean_rows(values), left=1), Text(""))


def mean_rows(values: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Give a head, and a row of figures for each encoder, the best first; `values` as for `means`."""
    shown = [name for name in _figures(values) if name != _INTERVAL]
    rows = [["encoder", *map(_heading, shown), "trainings"]]
    for encoder, row in sorted(values.items(), key=lambda item: -item[1]["mean_ap"]["mean"]):
        rows.append([encoder, *(_spread(row.get(name)) for name in shown), f"{row['mean_ap']['n']:.0f}"])
    return rows


_INTERVAL = "low/mean_ap"


def _figures(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Choose the figures that a table of scores shows, in its order."""
    there = {name for row in values.values() for name in row}
    ranks = sorted((name for name in there if name.startswith("rank-")), key=_rank_number)
    return [name for name in ("mean_ap", _INTERVAL, "mean_inp") if name in there] + ranks


def _heading(name: str, confidence: float = 0.0) -> str:
    """Name a column; `confidence` is that of the interval, 0 where nothing is known of it."""
    interval = f"{100 * confidence:g} % interval" if confidence else "interval"
    return {"mean_ap": "mAP", "mean_inp": "mINP", _INTERVAL: interval}.get(name, name)


def _percent(row: Mapping[str, float], name: str) -> str:
    if name == _INTERVAL and name in row:
        return f"{100 * row[name]:.1f}..{100 * row['high/mean_ap']:.1f}"
    return f"{100 * row[name]:.1f} %" if name in row else ""


def _rank_number(name: str) -> int:
    return int(name.partition("-")[2])


def ablation(told: Mapping[str, Any]) -> RenderableType:
    """Lay out an ablation: a line a row with mAP and rank-1 over the seeds, for everybody and for each group.

    Args:
        told: as `flows.commands.ablate` makes it.
    """
    values = told["scores"]
    figures = ["mean_ap", "rank-1"]
    shown = figures + [f"{group}/{figure}" for group in told["groups"] for figure in figures]
    head = ["", "", *(name.replace("mean_ap", "mAP").replace("/", " ") for name in shown)]
    texts = {**told["rows"], "untrained": "before any training", "hsv-histogram": "colour histogram of the crops"}
    lines = [
        [name, text, *(_spread(values[name].get(figure)) for figure in shown)]
        for name, text in texts.items()
        if name in values
    ]
    found = told["retrieval"]
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    crossing = [["", *names], *([name, *(_spread(row.get(one)) for one in names)] for name, row in found.items())]
    seeds = ", ".join(map(str, told["seeds"]))
    return Group(
        Text(f"Ablation on {told['snapshot']}: mean and standard deviation over seeds {seeds}", style="bold"),
        *_columns([head, *lines], left=2),
        Text(""),
        Text("Skeletons that look for pictures of people held out", style="bold"),
        *_columns(crossing, left=1),
        Text(""),
    )


def _spread(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f} %"


def _columns(rows: Sequence[Sequence[str]], left: int) -> list[Text]:
    """Align columns, the first `left` of them to the left; lines are never cut to a width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        Text(
            "  "
            + "    ".join(
                f"{cell:<{w}}" if i < left else f"{cell:>{w}}"
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )
        for row in rows
    ]


def losses(curves: Mapping[str, Sequence[float]]) -> RenderableType:
    """Lay out each training stage's loss in its first and last epoch."""
    rows = [(name, f"{values[0]:.3f} to {values[-1]:.3f} in {len(values)} epochs") for name, values in curves.items()]
    return facts("Losses", rows)


def brief(value: object) -> str:
    """Write a digest by its first letters and of a list the first few; JSON has all of it."""
    if isinstance(value, list):
        return shorten([str(one) for one in value])
    text = str(value)
    return text[:12] if _DIGEST.fullmatch(text) else text
