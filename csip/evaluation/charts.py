"""Line charts as SVG strings for inlining in HTML; colours come from the page's `--series-1` ... variables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

# Every curve also has its own dashes: colour is not all that tells them apart.
_COLOURS: Final = ("#1b5fae", "#c2570c", "#4c7a34", "#8a4fa3", "#a3333d", "#5b6472")
_DASHES: Final = ("", "7 4", "2 4", "10 3 2 3", "4 2", "1 3")
_LEFT, _RIGHT, _BOTTOM, _FONT, _LEGEND_ROW = 54, 14, 46, 12, 20
# Curves of at most this many points show each of them, with its value on hover.
_MARKED_POINTS = 60
_WIDTH, _HEIGHT, _MARGIN = 460, 290, 14
# As on the report's page in daylight; a picture has no page to take its colours from.
_STYLE = (
    "text{fill:#5b6472;font-family:sans-serif}.legend text,.label{fill:#1b2430}"
    ".grid{stroke:#d9dee5}.base,.tick{stroke:#5b6472}"
)
# Values nearer to each other are one: their distance cannot be divided any more.
_SAME = 1e-300


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: in the legend.
        x: positions, ascending.
        y: values; NaN leaves a gap.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"Curve {self.name}: got {len(self.x)} positions and {len(self.y)} values.")

    def runs(self) -> list[list[tuple[float, float]]]:
        """Cut the curve at every point that is NaN or infinite."""
        points = zip(map(float, self.x), map(float, self.y), strict=True)
        grouped = itertools.groupby(points, key=lambda p: math.isfinite(p[0]) and math.isfinite(p[1]))
        return [list(run) for finite, run in grouped if finite]


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps the numbers `low` to `high` onto the pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    decimals: int

    def at(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{self.start + share * (self.end - self.start):.1f}"

    def text(self, value: float) -> str:
        if self.decimals > 4 or abs(value) >= 1e6:
            return f"{value:.3g}"
        # The + 0.0 turns a negative zero into zero.
        return f"{round(value, self.decimals) + 0.0:,.{self.decimals}f}"


def line_chart(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_limits: tuple[float, float] | None = None,
    whole_x: bool = True,
    width: int = _WIDTH,
    height: int = _HEIGHT,
) -> str:
    """Draw curves over one pair of axes.

    Args:
        curves: in the order of the legend; none, or only empty ones, give a chart that says so.
        title: read out in place of the picture.
        x_label: under the horizontal axis, with its unit.
        y_label: over the vertical axis, with its unit.
        y_limits: ends of the vertical axis, or None to fit the values.
        whole_x: put no ticks between whole numbers.
        width: of the drawing's own coordinates; on the page it scales.
        height: likewise.

    Returns:
        An `<svg>` element, the same for the same arguments; every text in it is escaped.
    """
    runs = [curve.runs() for curve in curves]
    points = [point for curve in runs for run in curve for point in run]
    legend, legend_height = _legend([curve.name for curve in curves], width)
    top = legend_height + 24
    words = " ".join(_in_words(curve.name, run) for curve, run in zip(curves, runs, strict=True))
    summary = escape(f"{title}: {y_label} over {x_label}. {words}")
    head = f'<svg class="chart" role="img" viewBox="0 0 {width} {height}" aria-label="{summary}">'
    if not points:
        middle = f'<text class="empty" x="{width / 2:.0f}" y="{height / 2:.0f}" text-anchor="middle">no data</text>'
        return f"{head}{legend}{middle}</svg>"
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_axis = _axis(min(xs), max(xs), _LEFT, width - _RIGHT, whole=whole_x, tight=True)
    low, high = y_limits or _with_zero(min(ys), max(ys))
    y_axis = _axis(low, high, height - _BOTTOM, top, whole=False, tight=y_limits is not None)
    body = _grid(x_axis, y_axis, width, height, x_label, y_label, top)
    lines = "".join(_line(i, curve.name, runs[i], x_axis, y_axis) for i, curve in enumerate(curves))
    return f"{head}{legend}{body}{lines}</svg>"


def as_picture(chart: str) -> str:
    """Make a file of its own of a chart of `line_chart`'s default size: an SVG document on a white ground."""
    wide, high = _WIDTH + 2 * _MARGIN, _HEIGHT + 2 * _MARGIN
    place = f'<svg x="{_MARGIN}" y="{_MARGIN}" width="{_WIDTH}" height="{_HEIGHT}" '
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}">'
        f'<style>{_STYLE}</style><rect width="{wide}" height="{high}" fill="#fff"/>'
        f"{chart.replace('<svg ', place, 1)}</svg>"
    )


def _in_words(name: str, runs: list[list[tuple[float, float]]]) -> str:
    if not runs:
        return f"{name}: no data."
    return f"{name}: from {runs[0][0][1]:.3g} to {runs[-1][-1][1]:.3g}."


def _with_zero(low: float, high: float) -> tuple[float, float]:
    """Start the axis at zero where that costs less than half of it."""
    return (0.0, high) if 0 <= low < high / 2 else (low, high)


def _axis(low: float, high: float, start: float, end: float, *, whole: bool, tight: bool) -> _Axis:
    """Choose ticks at 1, 2 or 5 times a power of ten, about five of them; not `tight` means from tick to tick."""
    if high - low < _SAME:
        # One value only: room on both sides, by its own size.
        pad = 1.0 if whole or abs(low) < 100 * _SAME else abs(low) / 10
        low, high = low - pad, high + pad
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if not tight:
        low, high = first * step, last * step
    span = (high - low) * 1e-9
    ticks = [n * step for n in range(first, last + 1) if low - span <= n * step <= high + span]
    if tight and whole and low not in ticks:
        # Epochs and ranks begin at 1: name the first one, unless that crowds the next tick.
        ticks = [low, *(t for t in ticks if t - low > step / 2)]
    return _Axis(low, high, start, end, tuple(ticks), max(0, -math.floor(math.log10(step) + 1e-9)))


def _legend(names: list[str], width: int) -> tuple[str, int]:
    """Lay the names out in rows; return the drawing and its height."""
    out, x, row = [], 0.0, 0
    for i, name in enumerate(names):
        needed = 40 + 6.6 * len(name)
        if x and x + needed > width:
            x, row = 0.0, row + 1
        y = row * _LEGEND_ROW + 12
        sample = f'<line x1="{x:.1f}" x2="{x + 24:.1f}" y1="{y - 4}" y2="{y - 4}" {_stroke(i)}/>'
        out.append(f'{sample}<text x="{x + 30:.1f}" y="{y}">{escape(name)}</text>')
        x += needed
    return f'<g class="legend" font-size="{_FONT}">{"".join(out)}</g>', (row + 1) * _LEGEND_ROW if names else 0


def _stroke(i: int) -> str:
    k = i % len(_COLOURS)
    dashes = f' stroke-dasharray="{_DASHES[k]}"' if _DASHES[k] else ""
    return f'style="stroke:var(--series-{k + 1},{_COLOURS[k]})" stroke-width="2" fill="none"{dashes}'


def _grid(x_axis: _Axis, y_axis: _Axis, width: int, height: int, x_label: str, y_label: str, top: int) -> str:
    floor = height - _BOTTOM
    out = [f'<g class="axes" font-size="{_FONT}">']
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y}" y2="{y}"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{y}" dy="4" text-anchor="end">{y_axis.text(tick)}</text>')
    for tick in x_axis.ticks:
        x = x_axis.at(tick)
        out.append(f'<line class="tick" x1="{x}" x2="{x}" y1="{floor}" y2="{floor + 5}"/>')
        out.append(f'<text x="{x}" y="{floor + 19}" text-anchor="middle">{x_axis.text(tick)}</text>')
    out.append(f'<line class="base" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{floor}" y2="{floor}"/>')
    middle = (_LEFT + width - _RIGHT) / 2
    out.append(f'<text class="label" x="{middle:.1f}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    out.append(f'<text class="label" x="0" y="{top - 12}">{escape(y_label)}</text>')
    return "".join(out) + "</g>"


def _line(i: int, name: str, runs: list[list[tuple[float, float]]], x_axis: _Axis, y_axis: _Axis) -> str:
    colour = f"var(--series-{i % len(_COLOURS) + 1},{_COLOURS[i % len(_COLOURS)]})"
    marked = sum(map(len, runs)) <= _MARKED_POINTS
    out = ["<g>"]
    for run in runs:
        path = " ".join(f"{x_axis.at(x)},{y_axis.at(y)}" for x, y in run)
        if len(run) > 1:
            out.append(f'<polyline points="{path}" stroke-linejoin="round" {_stroke(i)}/>')
        for x, y in run if marked or len(run) == 1 else []:
            value = escape(f"{name}, {x:g}: {y:.4g}")
            circle = f'<circle cx="{x_axis.at(x)}" cy="{y_axis.at(y)}" r="2.6" style="fill:{colour}">'
            out.append(f"{circle}<title>{value}</title></circle>")
    return "".join(out) + "</g>"
