"""The store's tables as pyarrow schemas, one table a file. Nothing here reads or writes."""

from storage_schemas import (
    crops,
    detections,
    embeddings,
    frame_features,
    metrics,
    results,
    runs,
    skeletons,
    snapshots,
    splits,
    tracklets,
    videos,
)

TABLES = {
    module.__name__.rpartition(".")[2]: module.SCHEMA
    for module in (
        *(videos, detections, tracklets, crops, skeletons, splits),
        *(frame_features, embeddings, metrics, results, runs, snapshots),
    )
}
"""Table name -> schema, in the order in which a video's rows come to be."""
