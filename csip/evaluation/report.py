"""One self-contained HTML file about a run: scores, curves, people, rankings, lineage."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from csip.evaluation.charts import Curve, line_chart
from csip.evaluation.drawing import draw_skeleton, enlarge
from csip.evaluation.page import Crop, LossChart, Report
from csip.joints import JointLayout

_PICTURE_HEIGHT: Final = 160


@dataclass(frozen=True, slots=True)
class _Picture:
    """What an `<img>` needs: a data URI and its size in pixels."""

    src: str
    width: int
    height: int


def render(report: Report) -> str:
    """Write the page: HTML that needs no network, no other file and no script.

    Every text is escaped, so that no name of a file or a person becomes markup. The same report gives the same page.

    Raises:
        ValueError: a crop's keypoints do not fit the layout.
        StoreError: a crop is not a picture.
    """
    environment = Environment(
        loader=PackageLoader("csip", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent,
        duration=_duration,
        rank=_rank,
        picture=lambda crop: _picture(crop, report.layout, report.joint_confidence),
    )
    return environment.get_template("report.html.jinja").render(
        report=report,
        main=next((row for row in report.scores if row.is_main), None),
        best=_best(report),
        cmc_chart=_cmc_chart(report),
        loss_charts=[(loss, _loss_chart(loss)) for loss in report.losses],
    )


def _picture(crop: Crop, layout: JointLayout, threshold: float) -> _Picture:
    jpeg = (
        enlarge(crop.jpeg, _PICTURE_HEIGHT)
        if crop.keypoints is None
        else draw_skeleton(crop.jpeg, crop.box, crop.keypoints, layout, threshold, _PICTURE_HEIGHT)
    )
    with Image.open(io.BytesIO(jpeg)) as image:
        width, height = image.size
    return _Picture(f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}", width, height)


def _cmc_chart(report: Report) -> Markup:
    longest = max(report.ranks)
    curves = [
        Curve(row.name, range(1, 1 + len(row.cmc[:longest])), [100 * share for share in row.cmc[:longest]])
        for row in report.scores
    ]
    # Every text in the drawing was escaped where it was drawn.
    return Markup(
        line_chart(
            curves,
            title="CMC",
            x_label="rank k",
            y_label="queries with a match among the first k (%)",
            y_limits=(0, 100),
            width=420,
        )
    )


def _loss_chart(loss: LossChart) -> Markup:
    return Markup(
        line_chart(loss.curves, title=loss.title, x_label=loss.x_label, y_label=loss.y_label, width=340, height=280)
    )


def _rank(cmc: Sequence[float], k: int) -> float | None:
    """Rank-k accuracy; a gallery of fewer than k items answers with all it has, an empty one not at all."""
    return cmc[min(k, len(cmc)) - 1] if cmc else None


def _best(report: Report) -> dict[str, str]:
    """The highest value of every column, written as the table shows it: what looks equal is marked alike."""
    columns: dict[str, list[float | None]] = {
        name: [getattr(row, name) for row in report.scores] for name in ("mean_ap", "mean_ap_trapezoidal", "mean_inp")
    }
    columns |= {str(k): [_rank(row.cmc, k) for row in report.scores] for k in report.ranks}
    there = {name: [value for value in values if value is not None] for name, values in columns.items()}
    return {name: f"{100 * max(values):.1f}" for name, values in there.items() if values}


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
