"""Flow "evaluate-csip": a checkpoint and a snapshot to scores."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger

from csip.config import DataConfig, EmbedConfig, EvaluateConfig, RuntimeConfig, SkeletonConfig
from csip.data.clips import choose_splits
from csip.errors import CheckpointError
from csip.evaluation.embed import encoder_name
from csip.models.checkpoints import checkpoint_ref
from csip.protocols import is_skeleton_only
from csip.references import FILE
from csip.tables import find_runs, open_snapshot, quote
from csip.types import CheckpointRef, EmbeddingsRef, ResultsRef, Snapshot
from flows.lost import coming_back
from flows.parameters import Section, Sha256, Store
from flows.train_csip import (
    embed_histogram_task,
    embed_modes,
    embed_skeletons_task,
    evaluate_task,
    one_by_one,
    take_newest,
)

_TRAINED = "stage IN ('stage2', 'train_skeletons')"


@flow(name="evaluate-csip")
def evaluate_csip(
    checkpoint: str,
    snapshot: str,
    store: Store,
    data: Section[DataConfig] = DataConfig(),  # noqa: B008 (frozen)
    embed: Section[EmbedConfig] = EmbedConfig(),  # noqa: B008 (frozen)
    evaluate: Section[EvaluateConfig] = EvaluateConfig(),  # noqa: B008 (frozen)
    skeleton: Section[SkeletonConfig] = SkeletonConfig(),  # noqa: B008 (frozen)
    runtime: Section[RuntimeConfig] = RuntimeConfig(),  # noqa: B008 (frozen)
    sha256: Sha256 = "",
) -> tuple[ResultsRef, ...]:
    """Embed a snapshot's queries and gallery with a checkpoint and score it, pictures beside the colour histogram.

    Args:
        checkpoint: path of a .safetensors file that `train-csip` wrote, on the machine that does the work; or the id of
            the run that wrote it, as the lineage has it; empty: the newest that was trained in the store.
        snapshot: name of a published snapshot; empty: the newest.
        store: the absolute folder of the store's tables, or s3://BUCKET/PREFIX.
        data: which of its protocols and splits.
        embed: how a part becomes one embedding.
        evaluate: what counts, and which ranks are reported.
        skeleton: of a skeleton-only data set, how windows are scored.
        runtime: what only changes how fast the scores come.
        sha256: what the checkpoint's file must have, 64 hexadecimal digits; empty: whatever it has.
    """

    def embedded(view: Snapshot) -> tuple[EmbeddingsRef, ...]:
        if is_skeleton_only(view.protocol):
            return (embed_skeletons_task(store, trained, view, skeleton, encoder, runtime),)
        return (
            *embed_modes(store, trained, view, embed, encoder, runtime),
            embed_histogram_task(store, view, embed),
        )

    with coming_back():
        trained = take_checkpoint(store, checkpoint, sha256)
        encoder = encoder_name(trained)
        snapshot = snapshot or take_newest(store)
        views = choose_splits(open_snapshot(store, snapshot), data)
        return one_by_one(views, lambda view: evaluate_task(store, embedded(view), view, evaluate, runtime))


def take_checkpoint(store: str, named: str, sha256: str) -> CheckpointRef:
    """Find a checkpoint by its path or by the run that wrote it; where none is named, the newest that was trained.

    Raises:
        CheckpointError: there is none, or the file is another one than it was.
    """
    path = Path(named)
    if not path.is_file():
        written = find_runs(store, f"run_id = {quote(named)}" if named else _TRAINED)
        known = [run.outputs for run in written if isinstance(run.outputs, dict) and set(run.outputs) == FILE]
        if not known:
            raise CheckpointError(
                f"Checkpoint {named or 'of a training'}: found no such file on this machine, and in {store} no run of "
                "that id that wrote one. Expected the path of a .safetensors file, a run's id, or nothing, where "
                "`train-csip` has run."
            )
        path, sha256 = Path(known[-1]["path"]), sha256 or known[-1]["sha256"]
        get_run_logger().info("Checkpoint %s: taking %s.", named or "of the newest training", path)
    found = checkpoint_ref(path.absolute())
    if sha256 not in ("", found.sha256):
        raise CheckpointError(
            f"Checkpoint {path}: found SHA-256 {found.sha256}, expected {sha256}: the file is another one than was "
            "meant. Restore it, or name the one that is meant."
        )
    return found
