"""Flow "build-skeletons": videos to a published snapshot of tracklets, crops and skeletons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.events import emit_event

from csip.config import ExtractConfig, RuntimeConfig
from csip.evaluation.publish import publish
from csip.ingest.benchmarks.importing import import_benchmark, is_benchmark
from csip.ingest.container import spell
from csip.ingest.extract import extract_videos
from csip.ingest.retrack import list_snapshot, with_detections_of
from csip.ingest.sources import list_videos
from csip.types import Snapshot, SourceVideo
from flows.lost import coming_back
from flows.parameters import Section, Sources, Store
from flows.runners import runner_for
from flows.stage import stage

PUBLISHED = "csip.snapshot.published"
"""The event that a build emits, with the snapshot's name and store."""


def name_batch(parameters: Mapping[str, Any]) -> str:
    """Name a run of `extract_videos` by the first of its videos and the number of the others."""
    videos: tuple[SourceVideo, ...] = parameters["videos"]
    others = f" and {len(videos) - 1} more" if len(videos) > 1 else ""
    return f"extract_videos: {spell(Path(Path(videos[0].path).name))}{others}"


list_videos_task = stage(list_videos, work=None, cached=False)
list_snapshot_task = stage(list_snapshot, work=None, cached=False)
extract_videos_task = stage(extract_videos, work="pose", cached=False, named=name_batch)
import_benchmark_task = stage(import_benchmark, work="pose", cached=False)
publish_task = stage(publish, work=None, cached=False)


@flow(name="build-skeletons")
def build_skeletons(
    sources: Sources,
    store: Store,
    camera: str = "",
    config: Section[ExtractConfig] = ExtractConfig(),  # noqa: B008 (frozen)
    runtime: Section[RuntimeConfig] = RuntimeConfig(),  # noqa: B008 (frozen)
    retrack: str = "",
) -> Snapshot:
    """Decode, find and track people, cache crops and skeletons; videos already done are not done again.

    Args:
        sources: absolute paths of videos, folders of videos, or .csv manifests with the columns path and camera; or one
            benchmark, such as `walkers:` or `mars:/data/mars`.
        store: the absolute folder of the store's tables, or s3://BUCKET/PREFIX.
        camera: the one camera that took all of them; empty: every file is a camera of its own.
        config: what changes the rows.
        runtime: what only changes how fast they come.
        retrack: a published snapshot, in the place of sources, which then count for nothing: its videos are tracked
            again, from what was detected; empty: none.
    """
    with coming_back():
        if not retrack and is_benchmark(sources):
            return _announce(import_benchmark_task(store, sources[0], config, runtime))
        if retrack:
            config = with_detections_of(store, retrack, config)
            videos = list_snapshot_task(store, retrack, config, runtime)
        else:
            videos = list_videos_task(store, sources, camera, config, runtime)
        same = {"store": store, "digests": videos.digests, "config": config, "runtime": runtime}
        with runner_for(runtime) as runner:
            extracted = [runner.submit(extract_videos_task, {**same, "videos": one}) for one in videos.batches]
            done = tuple(future.result() for future in extracted)
        return _announce(publish_task(store, videos, done, config))


def _announce(snapshot: Snapshot) -> Snapshot:
    """Tell Prefect's automations that a snapshot is published: again, too, when a build found nothing to do."""
    resource = {"prefect.resource.id": f"csip.snapshot.{snapshot.name}", "prefect.resource.name": snapshot.name}
    emit_event(PUBLISHED, resource, payload={"snapshot": snapshot.name, "store": snapshot.store})
    return snapshot
