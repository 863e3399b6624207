"""Batches made ahead of the training loop, in worker processes that live as long as the training does."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, Self

from torch.utils.data import DataLoader, Dataset, Sampler

from csip.data.clips import ClipDataset, ClipRequest, EncodedBatch
from csip.errors import CsipError, StageError
from csip.types import ClipBatch

Plan = Sequence[Sequence[ClipRequest]]

READ_AHEAD = 16
"""Batches that a process reads in one call to the store and then decodes in turn: half the time of a call for each."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ClipLoader:
    """Makes the batches of one plan after another, in `workers` processes beside this one (0: in this one).

    What comes out does not depend on `workers`: everything random follows from the requests' seeds. The processes start
    with the first plan and end with the ``with`` block. They are spawned, since Lance is not fork-safe.

    ``with ClipLoader(dataset, workers) as loader: for batch in loader.load(plan): ...``
    """

    def __init__(self, dataset: ClipDataset, workers: int) -> None:
        self._plan = _PlanOfTheDay(max(1, workers))
        self._loader: DataLoader[Any] = DataLoader(
            _Courier(dataset),
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=_as_it_is,
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        self._turn = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers; batches under way are dropped."""
        self._turn += 1
        iterator, self._loader._iterator = self._loader._iterator, None
        # In-process iterators have nothing to end. Waiting for the garbage collector would leave workers running as
        # long as somebody holds a traceback.
        end = getattr(iterator, "_shutdown_workers", None)
        try:
            if end is not None:
                end()
        except RuntimeError as died:
            # Raised in the middle of ending them, by the signal of one's death; the others are ended all the same.
            if not _tells_of_a_death(died):
                raise

    def load(self, plan: Plan) -> Iterator[ClipBatch]:
        """Make a plan's batches, in its order. A plan may be left in the middle and another one begun.

        Args:
            plan: for each batch, the clips asked for.

        Raises:
            CsipError: what was raised where the batch was made, of the same kind and with the same message.
            StageError: a worker died.
            ValueError: the next batch was asked for after another plan was begun.
        """
        self._turn += 1
        turn = self._turn
        self._plan.turn, self._plan.batches = turn, [list(batch) for batch in plan]
        with _signals_held_back() if self._loader.num_workers else nullcontext():
            made = iter(self._loader)
        while True:
            if turn != self._turn:
                raise ValueError("ClipLoader.load: asked for more of a plan after another was begun, or after the end.")
            try:
                batch = next(made)
            except StopIteration:
                return
            except (RuntimeError, EOFError, OSError) as error:
                if not _tells_of_a_death(error):
                    raise
                raise StageError(
                    f"A process that reads training clips died ({error!r}). If memory ran out, or shared memory (in a "
                    "container: --shm-size), lower runtime.workers and run the same command again."
                ) from error
            if isinstance(batch, CsipError):
                raise batch
            yield batch


@dataclass(frozen=True, slots=True)
class _Order:
    """A batch to make.

    Attributes:
        turn: number of the plan.
        at: the batch's place in it.
        batches: to read in one call where this one has not been read yet: by their places, itself and, now and then,
            those that will be ordered after it from the same process.
    """

    turn: int
    at: int
    batches: dict[int, list[ClipRequest]]


class _PlanOfTheDay(Sampler[Any]):
    """The batch sampler: the same object for the loader's whole life, with another plan each epoch."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.turn = 0
        self.batches: list[list[ClipRequest]] = []

    def __iter__(self) -> Iterator[_Order]:
        turn, batches, stride = self.turn, self.batches, self.processes
        for at in range(len(batches)):
            # The loader deals to its workers in turn: one that makes this batch makes every stride-th after it.
            ahead = READ_AHEAD if at // stride % READ_AHEAD == 0 else 1
            yield _Order(turn, at, {i: batches[i] for i in range(at, len(batches), stride)[:ahead]})

    def __len__(self) -> int:
        return len(self.batches)


class _Courier(Dataset[Any]):
    """Makes batches and keeps what it has read ahead of them, encoded.

    It hands an error over as an answer: the loader would wrap a raised one's message in a traceback.
    """

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset
        self.turn = 0
        self.read: dict[int, EncodedBatch] = {}

    def __getitems__(self, order: _Order) -> ClipBatch | CsipError:
        try:
            if order.turn != self.turn or order.at not in self.read:
                self.turn, self.read = order.turn, {}  # what is there is of a plan that was left
                read = self.dataset.read_batches(list(order.batches.values()))
                self.read = dict(zip(order.batches, read, strict=True))
            return self.dataset.decode_batch(self.read.pop(order.at))
        except CsipError as error:
            return error.with_traceback(None)


def _tells_of_a_death(error: Exception) -> bool:
    """Tell a worker's death from an error that it met: the loader's word, or a connection that broke in an answer."""
    broke = isinstance(error, EOFError | ConnectionError) and not str(error).startswith("Caught ")
    return broke or "DataLoader worker (pid" in str(error)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let processes that are started meanwhile take these signals only when they are ready for them."""
    resource_tracker.ensure_running()  # the first of them would start it, which lets go of the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to_the_parent(_: int) -> None:
    """Ctrl-C reaches every process of a terminal, and a run that is cancelled is sent SIGTERM with all its processes.

    The training saves first and ends its workers then; one that does not end by itself is sent SIGTERM once more.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _as_it_is(batch: Any) -> Any:
    """Collate nothing: batches are made whole."""
    return batch
