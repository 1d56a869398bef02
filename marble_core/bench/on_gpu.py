"""What a GPU really takes for the parts of a step, with random weights of a real shape, beside what was counted for it.

Nothing is downloaded and nothing else of the project is needed: a checkout and a GPU. On a CPU the same code runs a small shape.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import torch

from marble_core import __version__
from marble_core.bench.costs import Parts, Schedule, with_halves
from marble_core.bench.kernels import Work
from marble_core.bench.live import Live
from marble_core.bench.probe import Probe
from marble_core.bench.roofline import counted, in_seconds
from marble_core.bench.shapes import Shape
from marble_core.estimate.gpus import GPUS, Gpu
from marble_core.estimate.memory import GIB
from marble_core.models.base import DTYPES
from marble_core.runtime.console_table import print_blocks

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
WARM_UPS = 2


@dataclass(frozen=True)
class Measured:
    """Seconds of an image by kind of step, and peak bytes of a micro-batch by part; ``bound`` as counted for this card, if it is known."""

    precision: str
    images: int
    seconds: Mapping[str, float]
    bound: Mapping[str, float]
    peak: Mapping[str, int]


def run(
    shape: Shape,
    device: str,
    precisions: Sequence[str],
    rewards: Sequence[int],
    repeats: int,
    output: Path,
    console: Console,
) -> list[Measured]:
    """Measure each precision, print a table, and write ``output`` as JSON with the card's name and the versions."""
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    gpu = next((g for name, g in GPUS.items() if name in card.replace(" ", "")), None)
    work = count(shape, rewards)
    found = [_measure(shape, device, precision, rewards, repeats, work if gpu else None, gpu) for precision in precisions]
    _table(found, f"{card}: {shape.name}", console)
    about = {"card": card, "shape": shape.name, "torch": torch.__version__, "marble": __version__}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(about | {"measured": [asdict(one) for one in found]}, indent=2), encoding="utf-8")
    console.print(f"Written to {output}", soft_wrap=True)
    return found


def count(shape: Shape, rewards: Sequence[int]) -> Parts[Work]:
    return Probe(shape, "meta", torch.bfloat16).parts([with_halves(K) for K in rewards], counted)


def _measure(
    shape: Shape,
    device: str,
    precision: str,
    rewards: Sequence[int],
    repeats: int,
    work: Parts[Work] | None,
    gpu: Gpu | None,
) -> Measured:
    probe = Probe(shape, device, DTYPES[precision])
    rows = [with_halves(K) for K in rewards]
    taken: list[Parts[float]] = [probe.parts(rows, _Seconds(device)) for _ in range(WARM_UPS + repeats)][WARM_UPS:]
    parts = Parts(
        forward=median(p.forward for p in taken),
        reference=median(p.reference for p in taken),
        taped=median(p.taped for p in taken),
        plain=median(p.plain for p in taken),
        rows={R: median(p.rows[R] for p in taken) for R in rows},
    )
    bound = _steps(in_seconds(work, gpu), rewards, shape) if work and gpu else {}
    peak = {"plain": _peak(device, probe.plain)}
    peak |= {f"exact, K = {K}": _peak(device, lambda K=K: probe.exact(with_halves(K))) for K in rewards}  # type: ignore[misc]
    return Measured(precision, shape.images, _steps(parts, rewards, shape), bound, peak)


def _steps(parts: Parts[float], rewards: Sequence[int], shape: Shape) -> dict[str, float]:
    """Seconds of one image: sampled, and through whole steps."""
    schedule: Schedule = shape.schedule
    steps = {"sampling": schedule.sampling * parts.forward, "plain step": schedule.plain(parts)}
    steps |= {f"exact step, K = {K}": schedule.exact(parts, with_halves(K)) for K in rewards}
    return {name: seconds / shape.images for name, seconds in steps.items()}


class _Seconds:
    """A clock that waits for the device."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, work: Callable[[], T]) -> tuple[float, T]:
        _wait(self.device)
        start = time.perf_counter()
        result = work()
        _wait(self.device)
        return time.perf_counter() - start, result


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak(device: str, work: Callable[[], None]) -> int:
    """Bytes that tensors of the work held at most, beyond what was there."""
    if device != "cuda":
        with Live() as live:
            work()
        return live.peak
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return int(torch.cuda.max_memory_allocated() - before)


def _table(found: Sequence[Measured], title: str, console: Console) -> None:
    rows = []
    for name in found[0].seconds:
        cells = [(f"{one.seconds[name]:.3f}", f"{one.bound[name]:.3f}" if name in one.bound else "-") for one in found]
        rows.append((name, *(cell for pair in cells for cell in pair)))
    for name in found[0].peak:
        cells = [(f"{one.peak[name] / GIB:.2f} GiB", "") for one in found]
        rows.append((f"peak of {found[0].images} images, {name}", *(cell for pair in cells for cell in pair)))
    headings = [heading for one in found for heading in (f"{one.precision}, s per image", "counted, s")]
    print_blocks(console, (title, *headings), rows)
