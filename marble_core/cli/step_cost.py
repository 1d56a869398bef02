"""What ``marble check`` says of a step's work and of the memory that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marble_core.config.schema import RunConfig
    from marble_core.estimate import Hours, Memory, Work


def lines(config: RunConfig) -> Iterator[str]:
    """The batch arithmetic, the memory by part and phase, and the hours."""
    from marble_core.cli.options import with_what_to_fetch
    from marble_core.config.durations import duration
    from marble_core.estimate import GIB, checkpoint_of, hours_of, memory_of, sizes_of, work_of
    from marble_core.estimate.rehearsal import rehearsal_seconds
    from marble_core.rewards.cards import cards_of

    sizes = sizes_of(config.model)
    yield from _arithmetic(config, work_of(config, sizes))
    if sizes is None:
        yield f"memory       not known before the model's files are on this machine: {with_what_to_fetch('marble fetch')}"
        return
    yield from _table(config, memory_of(config, sizes, cards_of(config.measured)))
    yield f"checkpoint   {checkpoint_of(config, sizes) / GIB:.2f} GiB"
    yield _hours(config, hours_of(config, sizes))
    seconds = duration(rehearsal_seconds(config, sizes))
    yield f"rehearsal    at most {seconds}, loading not counted: marble run --rehearse measures how long a run takes"


def as_json(config: RunConfig) -> dict[str, Any]:
    """The same numbers, ready for JSON: bytes, hours, counts; null where the model's sizes are not known on this machine."""
    from dataclasses import asdict

    from marble_core.estimate import checkpoint_of, hours_of, memory_of, sizes_of, work_of
    from marble_core.rewards.cards import cards_of

    sizes = sizes_of(config.model)
    found: dict[str, Any] = {"steps": config.train.steps, "work": asdict(work_of(config, sizes))}
    if sizes is None:
        return found | {"memory": None, "checkpoint_bytes": None, "hours": None}
    memory = memory_of(config, sizes, cards_of(config.measured))
    phases = {phase: memory.total(phase) for phase in memory.phases}
    return found | {
        "memory": {"bytes": phases, "peak_phase": memory.peak_phase, "peak_bytes": memory.peak, "unknown": memory.unknown},
        "checkpoint_bytes": checkpoint_of(config, sizes),
        "hours": asdict(hours_of(config, sizes)),
    }


def _arithmetic(config: RunConfig, work: Work) -> Iterator[str]:
    rollout, loss, gpus = config.rollout, config.loss, config.hardware.gpus
    each = f", {work.images_per_process} on each of {gpus} GPUs" if gpus > 1 else ""
    yield f"a step       {rollout.prompts} prompts x {rollout.images_per_prompt} images = {work.images} images{each}"
    yield f"sampling     {rollout.steps} steps of {rollout.solver}, {_batches(work.batches)} of up to {rollout.batch_size} images"
    yield (
        f"gradients    {loss.timesteps} timesteps per image in micro-batches of up to {loss.micro_batch}: {work.micro_batches} of "
        f"them{' per GPU' if gpus > 1 else ''}, {work.forwards} forwards and {work.backwards} backwards"
        f"{f' in all; a QP every {config.balance.every} steps' if config.balance.every > 1 else ' in all'}"
    )
    if work.looks:
        share = f", {100 * work.watching:.2g} % of the steps' work" if work.watching else ""
        yield (
            f"watching     {work.images_per_look} images after every {config.watch.every} steps and once of the base, in "
            f"{config.evaluation.steps} steps of {config.evaluation.solver}{share}"
        )
    yield f"training     {config.train.steps} steps, a checkpoint every {config.train.checkpoint_every}"


def _batches(count: int) -> str:
    return "1 batch" if count == 1 else f"{count} batches"


def _table(config: RunConfig, memory: Memory) -> Iterator[str]:
    from marble_core.estimate import GIB

    hardware = config.hardware
    where = f"a GPU of {hardware.memory_gib:g}" if hardware.gpus else f"a machine of {hardware.memory_gib:g}"
    yield f"memory       GiB on {where}, estimated; offload: {config.model.offload}"
    width = max(map(len, memory.parts))
    cells = {phase: len(phase) + 1 for phase in memory.phases}  # with the longest part's name that fits into 80 columns
    yield f"  {'':{width}}" + "".join(f"{phase:>{cell}}" for phase, cell in cells.items())
    for part in memory.parts:
        sizes = (f"{memory.phases[phase].get(part, 0) / GIB:>{cell}.2f}" for phase, cell in cells.items())
        yield f"  {part:{width}}" + "".join(sizes)
    yield f"  {'together':{width}}" + "".join(f"{memory.total(phase) / GIB:>{cell}.2f}" for phase, cell in cells.items())
    yield f"  the peak is {memory.peak_phase}, with {memory.peak / GIB:.1f} GiB"
    for reward in memory.unknown:
        yield f"  not counted: what {reward} loads, for its size is not known on this machine"


def _hours(config: RunConfig, hours: Hours) -> str:
    gpus = config.hardware.gpus
    devices = f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "the CPU"
    shared = f" on {hours.evaluators} GPUs" if hours.evaluators > 1 else ""
    return (
        f"hours        {hours.low:.2g} to {hours.high:.2g} for the training on {devices}; then at least {hours.evaluation:.2g} to evaluate "
        f"base and trained model{shared}. Counted, not measured, and without scoring: {hours.by}"
    )
