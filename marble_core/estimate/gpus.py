"""What GPUs reach in good kernels, for estimates of time. Their makers state more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Unit = Literal["bf16", "tf32", "fp32", "fp64", "attention", "attention_backward", "none"]


@dataclass(frozen=True)
class Gpu:
    """FLOP per second by unit, bytes per second of its memory. A multiplication and its addition are 2 FLOP."""

    name: str
    memory_gib: float
    bf16: float  # with float32 sums
    fp32: float
    fp64: float
    bytes: float
    attention: float  # FlashAttention, forward
    attention_backward: float

    def peak(self, unit: Unit) -> float:
        peaks = {
            "bf16": self.bf16,
            "tf32": self.bf16 / 2,
            "fp32": self.fp32,
            "fp64": self.fp64,
            "attention": self.attention,
            "attention_backward": self.attention_backward,
        }
        return peaks[unit] if unit in peaks else float("inf")

    def seconds(self, unit: Unit, flop: float, moved: float) -> float:
        """Of one kernel: its arithmetic or its memory traffic, whichever takes longer."""
        return max(flop / self.peak(unit), moved / self.bytes)


# Nominal dense bf16 and bandwidth: H100 SXM 989 T and 3.35 T, H200 989 T and 4.8 T, A100 312 T and 2.04 T, L40S 362 T and .86 T,
# RTX 4090 165 T and 1.01 T. About two thirds of the first and five sixths of the second are what large matrices and long rows get.
GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("H100", 80, 650e12, 50e12, 50e12, 2.8e12, 400e12, 320e12),
        Gpu("H200", 141, 650e12, 50e12, 50e12, 4.0e12, 400e12, 320e12),
        Gpu("A100", 80, 240e12, 17e12, 16e12, 1.75e12, 180e12, 140e12),
        Gpu("L40S", 48, 240e12, 60e12, 1.2e12, 0.75e12, 180e12, 140e12),
        Gpu("RTX4090", 24, 140e12, 55e12, 1.1e12, 0.9e12, 120e12, 90e12),
    )
}
