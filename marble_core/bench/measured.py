"""Parts in seconds, the QP in milliseconds, peak memory in bytes: medians, and each peak in a process of its own."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from marble_core.algorithm.min_norm import min_norm
from marble_core.bench.costs import JACOBIANS, Parts
from marble_core.bench.probe import Probe
from marble_core.bench.shapes import SD35_MEDIUM_CUT, Shape

T = TypeVar("T")
QP_REPEATS = 20


def measure(shape: Shape, rows: Sequence[int], rounds: int) -> Parts[float]:
    """Seconds of a micro-batch. A round runs every part in turn, so that a slow minute is every part's; the first, which
    touches all memory for the first time, does not count."""
    probe = Probe(shape, "cpu")
    taken = [probe.parts(rows, seconds, JACOBIANS) for _ in range(rounds + 1)][1:]
    return Parts(
        forward=median(p.forward for p in taken),
        reference=median(p.reference for p in taken),
        taped=median(p.taped for p in taken),
        plain=median(p.plain for p in taken),
        rows={R: median(p.rows[R] for p in taken) for R in rows},
        jacobian={K: median(p.jacobian[K] for p in taken) for K in JACOBIANS},
    )


def seconds(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def qp(K: int) -> float:
    """Milliseconds of the QP on fresh Gram matrices of K unit gradients with a common part, after its first call."""
    random = np.random.default_rng(K)
    taken = []
    for _ in range(QP_REPEATS + 1):
        g = random.normal(size=(K, 4 * K)) + random.normal(size=4 * K)
        g /= np.linalg.norm(g, axis=1, keepdims=True)
        taken.append(seconds(partial(min_norm, g @ g.T))[0])
    return 1000 * median(taken[1:])


def peak_memory(rows: int) -> int:
    """Peak resident bytes of two micro-batches of the cut shape, after its setup, in a fresh process (Linux): with ``rows`` rows of
    accumulators and two passes, or with an ordinary backward and its one gradient where ``rows`` is 0."""
    command = [sys.executable, "-m", __name__, str(rows)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _print_peak() -> None:
    parser = argparse.ArgumentParser(description=peak_memory.__doc__)
    parser.add_argument("rows", type=int)
    rows = parser.parse_args().rows
    probe = Probe(SD35_MEDIUM_CUT, "cpu")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # building the model peaks above what a step needs
    for _ in range(2):
        if rows:
            probe.exact(rows)
        else:
            probe.plain()
    status = Path("/proc/self/status").read_text(encoding="ascii")  # not ru_maxrss, which an exec inherits from the parent
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    print(int(found[1]) * 1024)


if __name__ == "__main__":
    _print_peak()
