"""Which epoch is reported: the last, or the best among people held out, or (only when asked for) on the test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from csip.config import EmbedConfig, EvaluateConfig, RuntimeConfig, ValidateConfig
from csip.data.clips import ClipDataset, read_parts, read_protocol
from csip.errors import CheckpointError, TooLittleDataError
from csip.evaluation.distances import euclidean_distance
from csip.evaluation.embed import embed_parts, known_cameras
from csip.evaluation.metrics import score_ranking
from csip.evaluation.protocol import rules
from csip.evaluation.ranking import Ranking
from csip.models.checkpoints import ModelSpec
from csip.models.reid import CsipReID
from csip.types import Snapshot, TrackletPart


def hold_out(pids: Sequence[int], config: ValidateConfig, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Divide the training people: those that are trained on, and those that only tell one epoch from another.

    Args:
        pids: all of them, ascending.
        config: nobody is held out unless it selects by validation.
        seed: of the draw.

    Raises:
        TooLittleDataError: fewer than two people would be left on a side.
    """
    if config.select != "validation":
        return tuple(pids), ()
    count = round(config.fraction * len(pids))
    if count < 2 or len(pids) - count < 2:
        raise TooLittleDataError(
            f"validate.fraction={config.fraction} of {len(pids)} training people: holds {count} out and leaves "
            f"{len(pids) - count}, expected at least two of each. Change the fraction, or use validate.select=last."
        )
    held = set(np.random.default_rng(seed).permutation(len(pids))[:count].tolist())
    return (
        tuple(pid for i, pid in enumerate(pids) if i not in held),
        tuple(pid for i, pid in enumerate(pids) if i in held),
    )


class Validation:
    """Looks at a network between epochs, and remembers nothing: the training's history does.

    Args:
        snapshot: the data set.
        spec: names the people held out.
        config: what to look at, and how often.
        runtime: crops a call.
        device: where the network is.

    Raises:
        CheckpointError: people must be held out, and the network was made to be trained on everybody.
    """

    def __init__(
        self, snapshot: Snapshot, spec: ModelSpec, config: ValidateConfig, runtime: RuntimeConfig, device: str
    ) -> None:
        self._config, self._runtime, self._device = config, runtime, device
        self.figure = f"{config.select}_mean_ap"
        self._query: tuple[TrackletPart, ...] = ()
        if config.select == "last":
            return
        self._rule = rules(EvaluateConfig(), read_protocol(snapshot)[0])
        if config.select == "validation":
            if not spec.held_out:
                raise CheckpointError(
                    "validate.select=validation: found a network made to be trained on everybody, expected one with "
                    "people held out. Train from the start with the same setting."
                )
            held = set(spec.held_out)
            self._query = self._gallery = tuple(p for p in read_parts(snapshot, "train") if p.pid in held)
        else:
            self._query, self._gallery = read_parts(snapshot, "query"), read_parts(snapshot, "gallery")
            if self._rule.query_in_gallery:
                self._gallery = (*self._query, *self._gallery)
        at = {part: i for i, part in enumerate(dict.fromkeys((*self._query, *self._gallery)))}
        self._dataset = ClipDataset(snapshot, tuple(at), spec.clip, skeletons=False)
        self._rows = [[at[part] for part in side] for side in (self._query, self._gallery)]
        self._cameras = known_cameras(snapshot, spec)

    def look(self, network: CsipReID, epoch: int, epochs: int) -> dict[str, float]:
        """Score the network after an epoch, mAP and rank-1, or nothing between looks; it is left in evaluation mode."""
        if self._config.select == "last" or (epoch % self._config.every and epoch != epochs):
            return {}
        network.eval()
        everybody = range(len(self._dataset))
        crops = self._runtime.encode_batch
        feature = np.stack(
            list(embed_parts(network, self._dataset, everybody, EmbedConfig(), self._cameras, crops, self._device))
        )
        query, gallery = (feature[rows] for rows in self._rows)
        ranking = Ranking(self._query, self._gallery, query, gallery, *map(np.array, self._rows))
        own = ranking.own(slice(None))
        same_camera = self._rule.exclude_same_camera
        distance = euclidean_distance(query, gallery)
        scores = score_ranking(distance, *ranking.ids(), exclude_same_camera=same_camera, own=own)
        return {self.figure: scores.mean_ap, f"{self._config.select}_rank1": scores.rank(1)}

    def best_epoch(self, history: Sequence[Mapping[str, float]]) -> int:
        """Give the epoch with the best mAP so far, the first of equals; 0 where the last one is reported."""
        looked = [(values[self.figure], -epoch) for epoch, values in enumerate(history, 1) if self.figure in values]
        return -max(looked)[1] if looked else 0
