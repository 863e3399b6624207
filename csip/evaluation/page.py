"""What a report shows: the records that its caller fills from the tables and `csip.evaluation.report.render` reads."""

from __future__ import annotations

from dataclasses import dataclass

from csip.evaluation.charts import Curve
from csip.joints import COCO17, JointLayout
from csip.types import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """One stored crop.

    Attributes:
        jpeg: the file's bytes, as the crops table holds them.
        frame_index: zero-based in the source.
        box: (4,) x1 y1 x2 y2, frame pixels: what the crop shows, see `csip.evaluation.drawing.clip_box`.
        keypoints: (J, 3) frame pixels and confidence, or None to draw no skeleton.
    """

    jpeg: bytes
    frame_index: int
    box: FloatArray
    keypoints: FloatArray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TrackletStrip:
    """A tracklet on the contact sheet.

    Attributes:
        tracklet_id: of the tracklet.
        camera: its camera's name or number, as people know it.
        num_frames: of the whole tracklet.
        keypoint_confidence: mean over the whole tracklet, 0..1.
        crops: some of its crops, in order.
        role: "train", "query and gallery", or empty.
    """

    tracklet_id: str
    camera: str
    num_frames: int
    keypoint_confidence: float
    crops: tuple[Crop, ...]
    role: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class RankedItem:
    """A gallery item a query found.

    Attributes:
        crop: one of its crops.
        name: what it is, such as "person 12, frames 40-61".
        distance: from the query.
        is_match: it is the query's person.
    """

    crop: Crop
    name: str
    distance: float
    is_match: bool


@dataclass(frozen=True, slots=True, eq=False)
class RankedQuery:
    """A query and what it found, nearest first.

    Attributes:
        crop: one of the query's crops.
        name: what it is.
        items: the first of its ranked gallery.
    """

    crop: Crop
    name: str
    items: tuple[RankedItem, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ScoreRow:
    """The scores of one encoder.

    Attributes:
        name: such as "trained", "untrained encoder", "HSV colour histogram".
        mean_ap: 0..1.
        cmc: cmc[k - 1] is rank-k accuracy, 0..1; the chart draws it, the table takes `Report.ranks` from it.
        num_queries: all queries.
        num_valid_queries: those that have a match to find.
        is_main: the row the page is about.
        interval: confidence interval of mAP, low and high; None where none was drawn.
        mean_ap_trapezoidal: mAP by the trapezoidal rule; None where it was not computed.
        mean_inp: mean inverse negative penalty; None where it was not computed.
        ranked: what one item of the ranking is, in words; empty where nothing is said.
    """

    name: str
    mean_ap: float
    cmc: tuple[float, ...]
    num_queries: int
    num_valid_queries: int
    is_main: bool = False
    interval: tuple[float, float] | None = None
    mean_ap_trapezoidal: float | None = None
    mean_inp: float | None = None
    ranked: str = ""


@dataclass(frozen=True, slots=True)
class BreakdownRow:
    """The scores of some of the main encoder's queries.

    Attributes:
        name: which: a pair of cameras, a class of lengths, a group of people.
        num_queries: how many they are.
        num_valid_queries: those that have a match to find.
        mean_ap: 0..1; None where none has.
        rank_1: 0..1; None where none has.
    """

    name: str
    num_queries: int
    num_valid_queries: int
    mean_ap: float | None
    rank_1: float | None


@dataclass(frozen=True, slots=True, eq=False)
class LossChart:
    """The curves of one training stage.

    Attributes:
        title: the stage's name.
        x_label: with its unit, such as "epoch".
        y_label: with its unit, such as "loss (nats)".
        curves: one a loss.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class CountRow:
    """How many of something there are: what was read, kept, and left out.

    Attributes:
        name: such as "tracklets" or "tracklets too short for two parts".
        value: the count.
        note: a few words, or empty.
        is_left_out: it counts what was dropped.
    """

    name: str
    value: int
    note: str = ""
    is_left_out: bool = False


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a step reads or writes.

    Attributes:
        name: such as "street.avi", "crops", "checkpoint", "mAP".
        version: a table's version such as "@4", or a value such as "71.3 %"; empty where there is none.
        digest: SHA-256 in full, or empty; the page shows its beginning.
    """

    name: str
    version: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class LineageStep:
    """One recorded stage of the run.

    Attributes:
        stage: its name.
        run_id: its row in `runs`.
        inputs: what it read.
        outputs: what it wrote.
        config_digest: of the section it took.
        git_commit: of the code, '+' behind it when there were changes; empty outside a repository.
        seconds: it took.
        device: it ran on.
    """

    stage: str
    run_id: str
    inputs: tuple[Artifact, ...]
    outputs: tuple[Artifact, ...]
    config_digest: str
    git_commit: str
    seconds: float
    device: str


@dataclass(frozen=True, slots=True)
class TableRow:
    """A table the snapshot pins.

    Attributes:
        name: of the table.
        version: pinned.
        rows: in that version.
    """

    name: str
    version: int
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """All that the page shows; `render` reads nothing else.

    Attributes:
        dataset: the data set's name.
        snapshot: the snapshot's name.
        recipe: the recipe's name.
        created: date and time as text; passed in, so that the same report gives the same bytes.
        label: the protocol in a few words, such as `csip.evaluation.protocol.LABEL`.
        protocol: the protocol in full, from `csip.evaluation.protocol.describe`.
        ranks: the rank-k columns.
        scores: one row an encoder, the main one marked.
        breakdown: the main encoder's queries by camera pair, length and group.
        losses: one chart a training stage.
        counts: what was read, kept and left out.
        tracklets: the contact sheet.
        queries: ranked galleries.
        lineage: the run's steps, first to last.
        tables: versions the snapshot pins.
        lineage_command: what to type to see the lineage.
        confidence: share of the draws inside the intervals of mAP; None where none were drawn.
        is_reranked: the queries' distances are re-ranked ones.
        layout: of the keypoints.
        joint_confidence: joints under it are not drawn.
        has_pictures: the data set has pictures; without, nobody can be shown.
    """

    dataset: str
    snapshot: str
    recipe: str
    created: str
    label: str
    protocol: str
    ranks: tuple[int, ...]
    scores: tuple[ScoreRow, ...]
    breakdown: tuple[BreakdownRow, ...]
    losses: tuple[LossChart, ...]
    counts: tuple[CountRow, ...]
    tracklets: tuple[TrackletStrip, ...]
    queries: tuple[RankedQuery, ...]
    lineage: tuple[LineageStep, ...]
    tables: tuple[TableRow, ...]
    lineage_command: str
    confidence: float | None = None
    is_reranked: bool = False
    layout: JointLayout = COCO17
    joint_confidence: float = 0.3
    has_pictures: bool = True
