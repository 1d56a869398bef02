"""Parts in FLOP: the project's own code on tensors without numbers, under torch's counter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from marble_core.bench.costs import Parts
from marble_core.bench.probe import Probe
from marble_core.bench.shapes import Shape

T = TypeVar("T")


def count(shape: Shape, rows: Sequence[int]) -> Parts[float]:
    """FLOP of one image; every part is linear in the number of images."""
    return Probe(replace(shape, images=1), "meta").parts(rows, flops)


def flops(work: Callable[[], T]) -> tuple[float, T]:
    """FLOP of ``work`` (a multiplication and its addition are 2), and its result."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm}) as counter:
        result = work()
    return float(counter.get_total_flops()), result


def _addmm(total: Sequence[int], a: Sequence[int], b: Sequence[int], **_: Any) -> int:
    """FLOP, from shapes, of the in-place ``addmm_`` that weights the rows: torch's counter leaves it out."""
    return 2 * a[0] * a[1] * b[1]
