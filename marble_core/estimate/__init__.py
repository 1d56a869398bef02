"""What a run needs, before it starts: memory by part and phase, work, hours, and settings that fit. Arithmetic; no torch.

It is an estimate: its memory is held against measured peaks on the CPU in tests/estimate/test_estimate.py, and has not been on a GPU.
"""

from marble_core.estimate.fit import check_fits, resolve_batch_sizes
from marble_core.estimate.gpu_hours import GpuHours, allowed_gpu_hours, check_gpu_hours, gpu_hours_of
from marble_core.estimate.hours import Hours, hours_of
from marble_core.estimate.memory import GIB, Memory, checkpoint_of, memory_of
from marble_core.estimate.sizes import Sizes, sizes_of
from marble_core.estimate.work import Work, work_of

__all__ = [
    "GIB",
    "GpuHours",
    "Hours",
    "Memory",
    "Sizes",
    "Work",
    "allowed_gpu_hours",
    "check_fits",
    "check_gpu_hours",
    "checkpoint_of",
    "gpu_hours_of",
    "hours_of",
    "memory_of",
    "resolve_batch_sizes",
    "sizes_of",
    "work_of",
]
