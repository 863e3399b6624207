"""Where a training is, written down often enough that a killed one goes on exactly from there.

Everything random in a batch follows from (seed, epoch, batch, rank), so that weights, the optimizer's moments and the
position are all it takes: a run that was killed and started again gives the same numbers as one that was not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from csip import ranks, tables
from csip.errors import CheckpointError
from csip.models.checkpoints import CheckpointHeader, SpecT, kind_of, save_checkpoint, write_whole
from csip.plain import digest, from_plain, to_plain
from csip.training.optim import Adam
from csip.types import CheckpointRef, Output, Progress, Snapshot

_LOG = logging.getLogger(__name__)
_FORMAT = "csip-training-1"
_SECONDS_TO_SHOW = 90.0
_SECONDS_TO_WRITE = 3600  # more than any state takes


@dataclass(slots=True)
class Position:
    """How far a training is; all of it is saved.

    Attributes:
        epoch: of the next batch, from 1; one more than there are when all is done.
        batch: batches of that epoch that are done.
        clips: clips of that epoch, in all processes.
        sums: figure -> its sum over those clips.
        counts: what the stage counts over the whole training.
        history: the figures of every finished epoch.
        kept: epoch -> path and SHA-256 of its checkpoint, where one was kept.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    epoch: int = 1
    batch: int = 0
    clips: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    kept: dict[int, dict[str, str]] = field(default_factory=dict)


class Training:
    """A network, its optimizer and their position, which can be left at any batch and taken up again.

    As a context it saves when its generator is closed (a stage that is told to stop); `advance` saves every
    `save_seconds`. Of several processes the first one writes, and all of them read.

    Args:
        out: the store; the state lies among its checkpoints.
        stage: the stage's name.
        epochs: how many there are.
        network: trained in place.
        optimizer: of its parameters.
        decides: what the training's name follows from: another value is another training.
        snapshot: what it trains on.
        pins: what must not have changed since the state was written, beside the snapshot's tables and the number of
            processes; compared when it is read.
        source: digest of the stage's code; a state that other code wrote is not gone on from.
        save_seconds: from one save to the next.

    Attributes:
        at: the position.
    """

    def __init__(
        self,
        out: Output,
        stage: str,
        epochs: int,
        network: nn.Module,
        optimizer: Adam,
        *,
        decides: Any,
        snapshot: Snapshot,
        pins: Mapping[str, Any],
        source: str,
        save_seconds: float,
    ) -> None:
        self.at = Position()
        self.stage, self.epochs = stage, epochs
        self._network, self._optimizer = network, optimizer
        self._pins = {"tables": dict(snapshot.tables), "processes": ranks.size(), **pins}
        self._source = source
        self._every, self._saved = save_seconds, time.monotonic()
        self._begun, self._clips_before = time.monotonic(), 0
        self.path = tables.folder(out.store, "checkpoints") / f"{stage}-{digest(stage, decides)[:16]}.state"

    def resume(self) -> Iterator[Progress]:
        """Take up the state that is on disk, if there is one, and tell the epochs that are done as if they were new.

        Raises:
            CheckpointError: the state cannot be read, or was written by a training on other inputs.
        """
        if self._is_there() and self._load():
            at = self.at
            _LOG.info("%s goes on after epoch %d, batch %d.", self.stage, at.epoch - 1, at.batch)
        if ranks.rank() == 0:
            self._sweep()
        self._clips_before, self._begun = self.at.clips, time.monotonic()
        for epoch, values in enumerate(self.at.history, start=1):
            yield Progress(self.stage, epoch, self.epochs, "epochs", values)

    def _is_there(self) -> bool:
        """Tell whether there is a state: all processes go by what the first one sees.

        Raises:
            CheckpointError: it sees one that this process does not.
        """
        if not int(ranks.from_first(torch.tensor(int(self.path.is_file())))):
            return False
        begun = time.monotonic()
        while not self.path.is_file():
            # Another machine's files show late on a network disk.
            if time.monotonic() - begun > _SECONDS_TO_SHOW:
                raise CheckpointError(
                    f"{self.path}: found no such file in process {ranks.rank()}, expected the state that the first "
                    "process sees. All machines of a training must see its store under the same path."
                )
            time.sleep(0.2)
        return True

    def _sweep(self) -> None:
        """Remove what killed writers left half done, and nothing that another process may be writing now."""
        for part in self.path.parent.glob(f".{self.path.name}-*.part"):
            with contextlib.suppress(FileNotFoundError):  # whole by now
                if part.stat().st_mtime < time.time() - _SECONDS_TO_WRITE:
                    part.unlink()

    @property
    def resumed(self) -> bool:
        """Whether any of it is done."""
        return self.at.epoch > 1 or self.at.batch > 0

    def __enter__(self) -> Training:
        """Nothing to prepare."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Save when told to stop. After any other error the weights may be between two steps: what is on disk holds."""
        if kind is GeneratorExit:
            self.save()

    def advance(self, clips: int, values: Mapping[str, Tensor], counts: Mapping[str, int] | None = None) -> None:
        """Account for a batch that the optimizer has taken.

        Args:
            clips: in all processes.
            values: figure -> its value for the batch, in all processes.
            counts: what to add to the stage's counters.
        """
        at = self.at
        at.batch += 1
        at.clips += clips
        for name, value in values.items():
            at.sums[name] = at.sums.get(name, 0.0) + clips * float(value)
        for name, number in (counts or {}).items():
            at.counts[name] = at.counts.get(name, 0) + number
        if ranks.any_rank(time.monotonic() - self._saved >= self._every):
            self.save()

    def heartbeat(self, batches: int) -> Progress:
        """Say after a batch how far its epoch is: no epoch more is done, and there is no figure to keep.

        Args:
            batches: of the whole epoch.
        """
        return Progress(self.stage, self.at.epoch - 1, self.epochs, "epochs", part=self.at.batch / batches)

    def finish_epoch(self, **more: float) -> Progress:
        """Close the epoch: its means and `more` become its figures, which everybody is told."""
        at = self.at
        speed = (at.clips - self._clips_before) / max(time.monotonic() - self._begun, 1e-9)
        means = {name: total / at.clips for name, total in at.sums.items()}
        at.history.append(means | more | {"clips_per_second": round(speed, 3)})
        at.epoch, at.batch, at.clips, at.sums = at.epoch + 1, 0, 0, {}
        self._clips_before, self._begun = 0, time.monotonic()
        return Progress(self.stage, at.epoch - 1, self.epochs, "epochs", at.history[-1])

    def header(self, spec: SpecT, parent: CheckpointRef, config: Any) -> CheckpointHeader[SpecT]:
        """Say what a checkpoint of the network as it is now is; nothing in it depends on the machine.

        Args:
            spec: of the network.
            parent: what it was trained from.
            config: the sections the stage read.
        """
        last = self.at.history[-1] if self.at.history else {}
        figures = {name: value for name, value in last.items() if name != "clips_per_second"}
        return CheckpointHeader(
            spec, self.stage, parent.sha256, to_plain(config), epoch=self.at.epoch - 1, metrics=figures
        )

    def save(self) -> None:
        """Write the state, whole or not at all, in place of the one before; all processes must ask."""
        self._saved = time.monotonic()
        scaler, moments = self._optimizer.state(dict(self._network.named_parameters()))
        if ranks.rank():
            return
        tensors = {f"network.{name}": value for name, value in self._network.state_dict().items()} | moments
        header = {"at": to_plain(self.at), "pins": to_plain(self._pins), "source": self._source, "scaler": scaler}
        # Parameters may share memory, which the format refuses.
        content = save(
            {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
            metadata={_FORMAT: json.dumps(header)},
        )
        write_whole(self.path, content)

    def _load(self) -> bool:
        """Read the state, and tell whether there is anything to go on from."""
        advice = f"Remove the file to train from the start: {self.path}"
        try:
            with safe_open(str(self.path), framework="pt") as file:
                header = json.loads((file.metadata() or {})[_FORMAT])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise kind_of(error)(
                f"{self.stage}: the state of the training that was left cannot be read ({error}). {advice}"
            ) from error
        if header.get("source") != self._source:
            _LOG.warning("%s: the code has changed since the training was left; it starts over.", self.stage)
            return False
        now = json.loads(json.dumps(to_plain(self._pins)))
        before: dict[str, Any] = header["pins"]
        changed = [
            f"{name}: found {before.get(name)}, expected {now.get(name)}"
            for name in sorted(before | now)
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise CheckpointError(
                f"{self.stage}: the training that was left read other inputs than this one ({'; '.join(changed)}). "
                f"Give it the same ones again. {advice}"
            )
        weights = {n.removeprefix("network."): v for n, v in tensors.items() if n.startswith("network.")}
        try:
            self._network.load_state_dict(weights, strict=True)
            self._optimizer.load(dict(self._network.named_parameters()), header["scaler"], tensors)
            self.at = from_plain(Position, header["at"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.stage}: the state that was left does not fit ({error}). {advice}") from error
        return True


def seed_batch(seed: int, epoch: int, batch: int) -> None:
    """Set torch's generators (dropout, sign flips) for one batch of this process, so that it can be done again."""
    torch.manual_seed(int(digest(seed, epoch, batch, ranks.rank())[:15], 16))


def keep_checkpoint(
    training: Training, network: nn.Module, header: CheckpointHeader[SpecT], folder: Path, *, every: int, best: int
) -> None:
    """Write the epoch's checkpoint if it is the best one or an n-th; the best one before is dropped again.

    Args:
        training: remembers what is kept.
        network: as it is after the epoch.
        header: of its checkpoint; names the epoch.
        folder: of checkpoints.
        every: n, or 0 for none.
        best: the best epoch so far, or 0 for none.
    """
    epoch, kept = header.epoch, training.at.kept
    if epoch != best and not (every and epoch % every == 0):
        return
    kept[epoch] = to_plain(save_checkpoint(network, header, folder))
    for old in [one for one in kept if one != best and not (every and one % every == 0)]:
        if ranks.rank() == 0:
            # By its name: a state that somebody else wrote must not lead out of the store.
            (folder / Path(kept[old]["path"]).name).unlink(missing_ok=True)
        del kept[old]
