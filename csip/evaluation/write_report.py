"""Stage `write_report`: gather a run's figures, people and lineage from the tables, and write the page."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from csip import tables
from csip.config import Experiment
from csip.data.clips import has_skeletons, joint_layout, read_cameras, read_parts, read_protocol
from csip.evaluation.charts import Curve
from csip.evaluation.drawing import clip_box
from csip.evaluation.metrics import rank_gallery
from csip.evaluation.page import (
    Artifact,
    BreakdownRow,
    CountRow,
    Crop,
    LineageStep,
    LossChart,
    RankedItem,
    RankedQuery,
    Report,
    ScoreRow,
    TableRow,
    TrackletStrip,
)
from csip.evaluation.protocol import label, rules
from csip.evaluation.ranking import rank
from csip.evaluation.report import render
from csip.evaluation.score import CONFIDENCE
from csip.joints import COCO17, JointLayout
from csip.lineage import History, Node, flatten
from csip.plain import digest, from_plain
from csip.protocols import is_skeleton_only
from csip.tables import RunRecord, quote
from csip.types import (
    EmbeddingsRef,
    FileRef,
    FloatArray,
    Outcome,
    Output,
    Progress,
    ResultsRef,
    Snapshot,
    Stage,
    TrackletPart,
)

_NAMES = {"trained": "trained", "untrained": "untrained encoder", "hsv-histogram": "HSV colour histogram"}
_ORDER = (
    *("videos", "videos_left_out", "videos_forgotten", "partial_videos", "cameras", "frames", "detections"),
    *("people_left_out", "tracklets", "dropped", "crops"),
    *("train_people", "test_people", "train_parts", "query_parts", "gallery_parts", "left_out_of_protocol"),
)
_TERMS = ("loss", "identity", "triplet", "prototype", "frame", "contrast", "reconstruction")


def write_report(out: Output, results: ResultsRef, snapshot: Snapshot, experiment: Experiment) -> Stage[FileRef]:
    """Write one self-contained HTML file about an evaluation.

    Args:
        out: the store; the page goes into its folder `reports`, named after snapshot and evaluation.
        results: of the evaluation.
        snapshot: it was made on.
        experiment: the recipe; its report section says how much is shown.

    Raises:
        StoreError: these names are none for a file in the store, or its place is a link that leads out.
    """
    path = tables.inside(out.store, "reports", f"{snapshot.name}-{results.run_id}.html")
    yield Progress("write_report", 0, 3, "sections")
    history = History(out.store)
    root = history.find(results.run_id)
    rows = tables.read(results.table, where=f"run_id = {quote(results.run_id)}").to_pylist()
    asked = root.made_by.inputs["embeddings"] if root.made_by else []
    encoders: tuple[EmbeddingsRef, ...] = from_plain(tuple[EmbeddingsRef, ...], asked)
    # Where there are no pictures there is none to show; where there are no skeletons, none is drawn.
    pictures = not is_skeleton_only(read_protocol(snapshot)[0])
    layout = joint_layout(snapshot) if pictures and has_skeletons(snapshot) else COCO17
    strips: tuple[TrackletStrip, ...] = ()
    queries: tuple[RankedQuery, ...] = ()
    yield Progress("write_report", 1, 3, "sections")
    if pictures:
        album = _Album(snapshot, layout)
        strips = tuple(_strips(album, snapshot, experiment))
        queries = tuple(_queries(album, encoders[0], snapshot, experiment))
    yield Progress("write_report", 2, 3, "sections")
    report = Report(
        dataset=experiment.dataset,
        snapshot=snapshot.name,
        recipe=experiment.name,
        created=root.made_by.started if root.made_by else "",  # so that the same scores give the same page
        label=label(read_protocol(snapshot)[0]),
        protocol=next(row["described"] for row in rows if row["encoder"] == encoders[0].encoder),
        ranks=experiment.evaluate.ranks,
        scores=tuple(_scores(rows, encoders)),
        breakdown=tuple(_breakdown(rows, encoders[0].encoder)),
        losses=tuple(_losses(out.store, root)),
        counts=tuple(_counts(tables.snapshot_row(out.store, snapshot.name)["counts"])),
        tracklets=strips,
        queries=queries,
        lineage=tuple(_steps(root)),
        tables=tuple(_table_rows(snapshot)),
        lineage_command=f"csip lineage {results.run_id} --store {shlex.quote(out.store)}",
        confidence=next((row["value"] for row in rows if row["name"] == CONFIDENCE), None),
        is_reranked=experiment.evaluate.rerank,
        layout=layout,
        joint_confidence=experiment.clip.joint_confidence,
        has_pictures=pictures,
    )
    content = render(report).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    yield Progress("write_report", 3, 3, "sections")
    counts = {"bytes": len(content), "tracklets_shown": len(strips)}
    return Outcome(FileRef(str(path), hashlib.sha256(content).hexdigest()), counts)


class _Album:
    """Finds single crops and their skeletons in a snapshot."""

    def __init__(self, snapshot: Snapshot, layout: JointLayout) -> None:
        self._crops = tables.Rows(tables.pinned(snapshot, "crops"))
        self._skeletons = tables.Rows(tables.pinned(snapshot, "skeletons"))
        self._layout = layout
        size = {
            row["video_sha"]: (row["width"], row["height"])
            for row in (
                tables.read(tables.pinned(snapshot, "videos"), ["width", "height"]).to_pylist()
                if "videos" in snapshot.tables
                else ()
            )
        }
        owners = tables.read(tables.pinned(snapshot, "tracklets"), ["video_sha"]).to_pylist()
        # Benchmarks have no videos, and boxes that are exactly what their crops show.
        self._frame_size = {row["tracklet_id"]: size.get(row["video_sha"]) for row in owners}
        keys = self._crops.keys()
        self._frames: dict[str, list[tuple[int, int]]] = {}
        for tracklet, frame, row in zip(
            keys["tracklet_id"].to_pylist(), keys["frame_index"].to_pylist(), keys["row"].to_pylist(), strict=True
        ):
            self._frames.setdefault(tracklet, []).append((frame, row))
        poses = self._skeletons.keys()
        pairs = zip(poses["tracklet_id"].to_pylist(), poses["frame_index"].to_pylist(), strict=True)
        self._pose_row = dict(zip(pairs, poses["row"].to_pylist(), strict=True))

    def crops(self, tracklet: str, count: int, first: int = 0, last: int = 2**62) -> tuple[Crop, ...]:
        """Pick `count` crops of a tracklet, evenly spread over its frames first..last."""
        frames = [(f, row) for f, row in self._frames[tracklet] if first <= f <= last]
        at = np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int))
        chosen = [frames[i] for i in at]
        table = self._crops.take(np.array([row for _, row in chosen]), ["image", "box"])
        size = self._frame_size[tracklet]
        boxes = [clip_box(box, *size) if size else box for box in tables.boxes_array(table["box"])]
        poses = [self._pose(tracklet, frame) for frame, _ in chosen]
        images = table["image"].to_pylist()
        return tuple(
            Crop(image, frame, box, pose)
            for image, (frame, _), box, pose in zip(images, chosen, boxes, poses, strict=True)
        )

    def _pose(self, tracklet: str, frame: int) -> FloatArray | None:
        row = self._pose_row.get((tracklet, frame))
        if row is None or self._layout.third != "confidence":  # a 3D skeleton has no place on the picture
            return None
        table = self._skeletons.take(np.array([row]), ["keypoints"])
        pose: FloatArray = tables.keypoints_array(table["keypoints"], len(self._layout.joints))[0]
        return pose


def _scores(rows: Sequence[Mapping[str, Any]], encoders: tuple[EmbeddingsRef, ...]) -> Iterator[ScoreRow]:
    for ref in encoders:
        value = {row["name"]: row["value"] for row in rows if row["encoder"] == ref.encoder}
        yield ScoreRow(
            name=_NAMES.get(ref.encoder, ref.encoder),
            mean_ap=value["mean_ap"],
            cmc=tuple(value[name] for name in sorted(value, key=_natural) if name.startswith("cmc-")),
            num_queries=int(value["num_queries"]),
            num_valid_queries=int(value["num_valid_queries"]),
            is_main=ref is encoders[0],
            interval=(value["low/mean_ap"], value["high/mean_ap"]) if "low/mean_ap" in value else None,
            mean_ap_trapezoidal=value.get("mean_ap_trapezoidal"),
            mean_inp=value.get("mean_inp"),
            ranked=ref.words,
        )


def _breakdown(rows: Sequence[Mapping[str, Any]], encoder: str) -> Iterator[BreakdownRow]:
    """Lay out the figures of some of the queries, named WHICH/FIGURE, in the order of their names."""
    value = {row["name"]: row["value"] for row in rows if row["encoder"] == encoder}
    names = dict.fromkeys(name.removesuffix("/num_queries") for name in value if name.endswith("/num_queries"))
    for name in sorted(names, key=_natural):
        yield BreakdownRow(
            name,
            int(value[f"{name}/num_queries"]),
            int(value.get(f"{name}/num_valid_queries", 0)),
            value.get(f"{name}/mean_ap"),
            value.get(f"{name}/rank-1"),
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort numbers inside a name by their size."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _losses(store: str, root: Node) -> Iterator[LossChart]:
    for run in _runs(root):
        table = tables.read(tables.current(store, "metrics"), where=f"run_id = {quote(run.run_id)}")
        curves = []
        for term in _TERMS:
            own = table.filter(pc.equal(table["name"], term)).sort_by("step")
            if len(own):
                curves.append(Curve(term, own["step"].to_pylist(), own["value"].to_pylist()))
        if curves:
            yield LossChart(run.stage, "epoch", "loss (nats; triplet, reconstruction: a distance)", tuple(curves))


def _runs(root: Node) -> list[RunRecord]:
    """List the runs behind a thing, each once, oldest first."""
    runs = {node.made_by.run_id: node.made_by for node in flatten(root) if node.made_by is not None}
    return sorted(runs.values(), key=lambda run: (run.started, run.run_id))


def _counts(counts: Mapping[str, Any]) -> Iterator[CountRow]:
    """Lay a snapshot's counts out; what was left out is marked as such, whatever its name."""
    for name, value in sorted(counts.items(), key=lambda item: _ORDER.index(item[0]) if item[0] in _ORDER else 99):
        if isinstance(value, Mapping):
            for reason, number in value.items():
                yield CountRow(reason, int(number), name.replace("_", " "), is_left_out=True)
        elif isinstance(value, int):
            yield CountRow(name.replace("_", " "), value, is_left_out=name.endswith(("left_out", "forgotten")))


def _strips(album: _Album, snapshot: Snapshot, experiment: Experiment) -> Iterator[TrackletStrip]:
    """Show evenly spread tracklets of the snapshot's people, train and test, in the order of their names."""
    cameras = read_cameras(snapshot)
    train, query, gallery = (read_parts(snapshot, role) for role in ("train", "query", "gallery"))
    camera = {part.tracklet_id: cameras[part.camid] for part in (*train, *query, *gallery)}
    trained = {part.tracklet_id for part in train}
    facts = {r["tracklet_id"]: r for r in tables.read(tables.pinned(snapshot, "tracklets")).to_pylist()}
    names = sorted(camera)
    for name in _spread(names, experiment.report.contact_tracklets):
        yield TrackletStrip(
            tracklet_id=name,
            camera=camera[name],
            num_frames=facts[name]["num_frames"],
            keypoint_confidence=facts[name]["keypoint_confidence"],
            crops=album.crops(name, experiment.report.contact_frames),
            role="train" if name in trained else "query and gallery",
        )


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    if not items:
        return []
    at = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[int(i)] for i in at]


def _queries(
    album: _Album, encoder: EmbeddingsRef, snapshot: Snapshot, experiment: Experiment
) -> Iterator[RankedQuery]:
    rule = rules(experiment.evaluate, read_protocol(snapshot)[0])
    ranking = rank(encoder, snapshot, rule)
    query_pid, query_camid, gallery_pid, gallery_camid = ranking.ids()
    shown = np.array(_spread(range(len(ranking.query)), experiment.report.queries), dtype=np.int64)
    # Re-ranking looks at all queries together; without it, the distances of the others are not needed.
    rerank = experiment.evaluate.rerank
    blocks = (ranking if rerank else ranking.take(shown)).blocks(experiment.evaluate, "cpu")
    distances = np.concatenate([block for _, block in blocks])
    for q, distance in zip(shown.tolist(), distances[shown] if rerank else distances, strict=True):
        order, match = rank_gallery(
            distance,
            int(query_pid[q]),
            int(query_camid[q]),
            gallery_pid,
            gallery_camid,
            top=experiment.report.gallery,
            exclude_same_camera=rule.exclude_same_camera,
            own=ranking.own(slice(q, q + 1))[0],
        )
        items = tuple(
            RankedItem(*_show(album, ranking.gallery[int(g)]), float(distance[g]), bool(right))
            for g, right in zip(order, match, strict=True)
        )
        crop, name = _show(album, ranking.query[q])
        yield RankedQuery(crop, name, items)


def _show(album: _Album, part: TrackletPart) -> tuple[Crop, str]:
    crops = album.crops(part.tracklet_id, 3, part.first_frame, part.last_frame)
    return crops[len(crops) // 2], f"person {part.pid}, frames {part.first_frame}-{part.last_frame}"


def _steps(root: Node) -> Iterator[LineageStep]:
    nodes = flatten(root)
    for run in _runs(root):
        made = [node for node in nodes if node.made_by is not None and node.made_by.run_id == run.run_id]
        inputs = {(s.kind, s.name): s for node in made for s in node.sources}
        yield LineageStep(
            stage=run.stage,
            run_id=run.run_id,
            inputs=tuple(_artifact(node) for node in inputs.values()),
            outputs=tuple(_artifact(node) for node in made),
            config_digest=digest(run.config),
            git_commit=run.git_commit,
            seconds=run.seconds,
            device=run.device,
        )


def _artifact(node: Node) -> Artifact:
    if node.kind == "table":
        name, _, version = node.name.partition("@")
        return Artifact(name, f"@{version}")
    if node.kind == "video":
        return Artifact(Path(str(node.facts.get("path", "video"))).name, "", node.name)
    if node.kind in ("checkpoint", "embeddings", "file"):
        return Artifact(str(node.facts.get("encoder", node.kind)), str(node.facts.get("table", "")), node.name)
    return Artifact(f"{node.kind} {node.name}")


def _table_rows(snapshot: Snapshot) -> Iterator[TableRow]:
    for name, version in snapshot.tables.items():
        yield TableRow(name, version, tables.count(tables.pinned(snapshot, name)))
