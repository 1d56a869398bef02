"""Several processes: which share of a step is whose, and the few collectives of a step. One process has no group and no cost.

Every process walks the same straight line over the step's whole PromptBatch. It samples and scores its own images; the
reward table is gathered, so advantages and masks are those of the whole step everywhere; it makes the backward passes of
its own images; the accumulators are summed, each layer on one process, which makes that layer's part of the Gram matrix
and of the combined gradient. Every process takes part in every collective, in the same order, whatever its share holds.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from marble_core.types import MarbleError, Outage, PromptBatch, RewardTable

T = TypeVar("T")
SILENCE = 60.0  # seconds without a sign of life after which a process counts as dead
PATIENCE = timedelta(minutes=30)  # of a collective: processes load and sample at different speeds, and that is no error


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> torch.device:
    """Where this process computes: its own GPU, which ``processes`` made the current one, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def processes(silence: float = SILENCE) -> Iterator[None]:
    """Within it this process belongs to the group that ``accelerate launch`` or torchrun started; without one, nothing happens.

    gloo carries what lies on the CPU and nccl what lies on a GPU. A process that dies ends the others: at their next
    collective by MarbleError where the connection breaks, else after ``silence`` seconds, even in the middle of a wait.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from accelerate import PartialState

    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    PartialState()  # takes the group as it is, and this process's own GPU as the current one
    watch = _Watch(silence)
    try:
        yield
        _barrier()  # rank 0 keeps the store that the others give their sign of life to
    finally:
        watch.stop()
        dist.destroy_process_group()
        PartialState._reset_state()


def images_of(batch: PromptBatch) -> np.ndarray:
    """This process's images, as indices into the step's: consecutive ones, so that the sources, which come in turn, are spread.

    Raises MarbleError where there are too few for each process to have some.
    """
    ends = _ends(batch)
    return np.arange(ends[rank()], ends[rank() + 1])


def ranks_of(batch: PromptBatch, m: int) -> list[int]:
    """Which processes have images of prompt ``m``."""
    ends, G = _ends(batch), batch.images_per_prompt
    return [r for r in range(world()) if ends[r] < (m + 1) * G and ends[r + 1] > m * G]


def _ends(batch: PromptBatch) -> list[int]:
    """Where each process's images begin, and after the last one the end: as many as of any other, or as many prompts where each
    one's images stay together."""
    M, n, unit = len(batch.prompts), world(), batch.images_per_prompt if batch.together else 1
    parts = len(batch) // unit
    if n > parts:
        what = f"{M} prompts, each scored as one group," if batch.together else f"{parts} images"
        raise MarbleError(f"A step of {what} cannot be shared by {n} processes; start fewer, or raise rollout.prompts.")
    return [parts * r // n * unit for r in range(n + 1)]


def every_nth(count: int) -> np.ndarray:
    """This process's of ``count`` things that lie in blocks: every n-th, so that each has some of every block. It may be none."""
    return np.arange(rank(), count, world())


def gather(value: T) -> list[T]:
    """Each process's, by rank, on every process. It is pickled: for small things of our own."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    with _together():
        dist.all_gather_object(values, value)
    return values


def gather_table(table: RewardTable) -> RewardTable:
    """The rewards of the whole step, from each process's of its own images."""
    return RewardTable.concatenate(gather(table)) if world() > 1 else table


def sum_array(values: np.ndarray) -> np.ndarray:
    """Elementwise over all processes."""
    if world() == 1:
        return values
    total = torch.as_tensor(values).clone()
    with _together():
        dist.all_reduce(total)
    return total.numpy()


def sum_by_layer(sums: dict[str, torch.Tensor]) -> None:
    """Sum each layer's accumulator over all processes, in place. The sum stays on one process; the others let theirs go."""
    if world() == 1:
        return
    with _together():
        for owner, name in _owners(sums):
            dist.reduce(sums[name], owner)
            if owner != rank():
                del sums[name]


def sum_tensor(total: torch.Tensor) -> torch.Tensor:
    """Over all processes, to the same bit on each."""
    if world() > 1:
        with _together():
            dist.reduce(total, 0)
            dist.broadcast(total, 0)
    return total


def gather_layers(
    layers: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor], rows: int | None = None
) -> dict[str, torch.Tensor]:
    """All layers on every process, to the same bit, where each has those that ``sum_by_layer`` left it; shapes as in ``like``,
    with a first axis of ``rows`` where that is given."""
    if world() == 1:
        return dict(layers)
    gathered, leading = {}, () if rows is None else (rows,)
    with _together():
        for owner, name in _owners(like):
            wide, place = torch.promote_types(like[name].dtype, torch.float32), like[name].device
            mine = owner == rank()
            gathered[name] = layers[name] if mine else torch.empty((*leading, *like[name].shape), dtype=wide, device=place)
            dist.broadcast(gathered[name], owner)
    return gathered


def on_main(make: Callable[[], T]) -> T:
    """What ``make`` returns on rank 0, on every process; the others do not call it."""
    if world() == 1:
        return make()
    made: list[Any] = [make() if rank() == 0 else None]
    with _together():
        dist.broadcast_object_list(made)
    return made[0]


def require_same(value: object, what: str) -> None:
    """Raises MarbleError on every process where they do not all hold the same value."""
    values = gather(value)
    if any(v != values[0] for v in values):
        raise MarbleError(f"The processes disagree on {what}: {values}; start them all on the same files and configuration.")


@contextmanager
def local_main_first() -> Iterator[None]:
    """A machine's first process goes through it before its others do, who find the files that it fetched; all leave together."""
    if world() == 1:
        yield
        return
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not first:
        _barrier()
    yield
    if first:
        _barrier()
    _barrier()


def _barrier() -> None:
    sum_array(np.zeros(1))


def _owners(layers: Mapping[str, Any]) -> list[tuple[int, str]]:
    return [(n % world(), name) for n, name in enumerate(sorted(layers))]


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise Outage(
            f"Process {rank()} of {world()} stopped because another one ended or hung; that one's own log says why. ({error})"
        ) from error


class _Watch:
    """A thread that gives a sign of life in the group's store and ends this process when another's has stayed away.

    Computing for long is no silence; a process that was killed, a machine that is gone, or one that was frozen is. It ends
    the process at once: the main thread may be in a collective that nothing interrupts.
    """

    def __init__(self, silence: float) -> None:
        self.silence, self.rank, self.world = silence, rank(), world()
        self.store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        self.store.set_timeout(timedelta(seconds=silence))
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join(self.silence)

    def _run(self) -> None:
        last = {r: (b"", time.monotonic()) for r in range(self.world)}
        beat = 0
        while not self.stopped.wait(self.silence / 20):
            beat += 1
            try:
                self.store.set(f"marble/alive/{self.rank}", str(beat))
                signs = {r: self.store.get(f"marble/alive/{r}") for r in last}
            except RuntimeError:
                self._end("process 0, or the launcher, is gone")
                return
            now = time.monotonic()
            last = {r: last[r] if last[r][0] == sign else (sign, now) for r, sign in signs.items()}
            for r, (_, since) in last.items():
                if now - since > self.silence:
                    self._end(f"process {r} has given no sign of life for {self.silence:g} s")

    def _end(self, why: str) -> None:
        if self.stopped.is_set():
            return
        print(f"Process {self.rank} of {self.world} stopped because {why}; its own log says why.", file=sys.stderr, flush=True)
        os._exit(1)
