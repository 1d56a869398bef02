"""The kernels that eager CUDA would run for a piece of work: their FLOP and bytes, counted on tensors without numbers.

Nothing is computed: under ``Counting`` the project's own code runs on the device ``meta``, and every operation that would start a
kernel is noted with what it reads, writes and multiplies. Three operations are taken apart by ``meta`` that one kernel of CUDA
does: attention, RMSNorm, and what autocast casts before them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from marble_core.estimate.gpus import Gpu, Unit

# What only looks at memory in another way, or reserves some.
VIEWS = frozenset(
    [
        "alias",
        "as_strided",
        "detach",
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "is_same_size",
        "lift_fresh",
        "new_empty",
        "permute",
        "reshape",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
        "view_as_complex",
        "view_as_real",
        "_conj",
        "_unsafe_view",
    ]
)


@dataclass(frozen=True)
class Kernel:
    name: str
    unit: Unit
    flop: float
    bytes: float


@dataclass
class Work:
    """Kernels, each with how often it runs."""

    kernels: Counter[Kernel] = field(default_factory=Counter)

    def add(self, kernel: Kernel) -> None:
        self.kernels[kernel] += 1

    def __add__(self, other: Work) -> Work:
        return Work(self.kernels + other.kernels)

    def __mul__(self, times: float) -> Work:
        return Work(Counter({kernel: n * times for kernel, n in self.kernels.items()}))

    @property
    def flop(self) -> float:
        return sum(n * k.flop for k, n in self.kernels.items())

    @property
    def bytes(self) -> float:
        return sum(n * k.bytes for k, n in self.kernels.items())

    @property
    def count(self) -> float:
        return sum(self.kernels.values())

    def seconds(self, gpu: Gpu) -> float:
        """Kernel after kernel, none waiting for the host."""
        return sum(n * gpu.seconds(k.unit, k.flop, k.bytes) for k, n in self.kernels.items())

    def floor(self, gpu: Gpu) -> float:
        """Matrix products and attention alone: what no fusion takes away."""
        return sum(n * gpu.seconds(k.unit, k.flop, k.bytes) for k, n in self.kernels.items() if k.unit != "none")

    def by_name(self) -> Mapping[str, tuple[float, float, float]]:
        """How often, FLOP and bytes, by kernel's name."""
        found: dict[str, tuple[float, float, float]] = {}
        for k, n in self.kernels.items():
            count, flop, moved = found.get(k.name, (0.0, 0.0, 0.0))
            found[k.name] = (count + n, flop + n * k.flop, moved + n * k.bytes)
        return found


def nbytes(*tensors: Any) -> float:
    """A row that is repeated by its strides is read once."""
    there = [t for t in tensors if isinstance(t, torch.Tensor)]
    return float(sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in there))


class Counting:
    """Within ``with`` all work is noted in ``work``. ``autocast``: as ``torch.autocast`` to bfloat16 on CUDA would run it."""

    active: ClassVar[list[Work]] = []  # a backward pass may be counted apart from its forward

    def __init__(self, autocast: bool = False) -> None:
        self.work = Work()
        self.autocast = autocast

    def __enter__(self) -> Work:
        self._modes = ExitStack()
        self.active.append(self.work)
        self._modes.callback(self.active.pop)
        self._modes.enter_context(_Dispatched(self.work))
        self._modes.enter_context(_AsOnCuda(self.autocast))
        return self.work

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._modes.close()


class _Dispatched(TorchDispatchMode):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().partition("::")[2].partition(".")[0]
        if name in VIEWS:
            return out
        inputs = (args, {k: a for k, a in (kwargs or {}).items() if k != "out"})  # which is written alone
        given = list({id(t): t for t in tree_leaves(inputs) if isinstance(t, torch.Tensor)}.values())
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if not any(t.device.type == "meta" for t in (*given, *made)):
            return out  # of the host
        flop = _flop(func, args, kwargs or {}, out)
        if name in ("_to_copy", "copy_"):
            source = given[-1]
            name = "cast" if source.dtype != made[0].dtype else "copy"
            if source.device != made[0].device:
                name = "copy between host and device"
        self.work.add(Kernel(name, _unit(name, given) if flop else "none", flop, nbytes(*given, *made)))
        return out


def _flop(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    packet = func.overloadpacket
    if packet in flop_registry:
        if packet is torch.ops.aten.bmm:  # with out_dtype it has one argument more
            args, kwargs = args[:2], {}
        return float(flop_registry[packet](*args, **kwargs, out_val=out))
    if packet is torch.ops.aten.addmm_:  # which torch's counter leaves out
        return 2.0 * args[0].numel() * args[1].shape[-1]
    return 0.0


def _unit(name: str, given: list[torch.Tensor]) -> Unit:
    types = {t.dtype for t in given if t.is_floating_point()}
    if torch.float64 in types:
        return "fp64"
    if torch.float32 not in types:
        return "bf16"
    return "tf32" if "convolution" in name else "fp32"  # torch's defaults


class _AsOnCuda(TorchFunctionMode):
    """What CUDA does in one kernel, and what its autocast to bfloat16 casts."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self.autocast = autocast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.autocast and (to := _AUTOCAST.get(func)):
            args = tuple(_cast(a, to) for a in args)
            kwargs = {k: _cast(a, to) for k, a in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*(args[:3] or (kwargs["query"], kwargs["key"], kwargs["value"])))
        if func is F.rms_norm:
            return _RMSNorm.apply(args[0])
        return func(*args, **kwargs)


_AUTOCAST: Mapping[Callable[..., Any], torch.dtype] = {
    **dict.fromkeys((F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm), torch.bfloat16),
    **dict.fromkeys((F.layer_norm, torch.pow, torch.Tensor.pow, torch.rsqrt), torch.float32),
}


def _cast(value: Any, to: torch.dtype) -> Any:
    return value.to(to) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _note(kernel: Kernel) -> None:
    if Counting.active:
        Counting.active[-1].add(kernel)


class _Attention(torch.autograd.Function):
    """FlashAttention: no matrix of all tokens by all tokens is written, and the backward pass computes it again."""

    @staticmethod
    def forward(ctx, q, k, v):  # type: ignore[no-untyped-def]
        B, heads, tokens, width = q.shape
        out = torch.empty(B, tokens, heads, width, device=q.device, dtype=q.dtype).transpose(
            1, 2
        )  # as FlashAttention leaves it
        statistics = torch.empty(q.shape[:3], device=q.device)
        ctx.save_for_backward(q, k, v, out, statistics)
        ctx.flop = 4.0 * B * heads * tokens * k.shape[2] * width
        _note(Kernel("attention", "attention", ctx.flop, nbytes(q, k, v, out)))
        return out

    @staticmethod
    def backward(ctx, d):  # type: ignore[no-untyped-def]
        q, k, v, out, _ = ctx.saved_tensors
        _note(Kernel("attention backward", "attention_backward", 2.5 * ctx.flop, nbytes(q, k, v, out, d, q, k, v)))
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _RMSNorm(torch.autograd.Function):
    """One kernel each way, for rows that lie in order; others are copied first. Its weights are frozen."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, torch.empty(x.shape[:-1], device=x.device))  # and the rows' roots, in float32
        _in_order(x)
        _note(Kernel("rms_norm", "none", 0.0, 2 * nbytes(x)))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, d):  # type: ignore[no-untyped-def]
        x, _ = ctx.saved_tensors
        _in_order(d)
        _note(Kernel("rms_norm backward", "none", 0.0, 3 * nbytes(x)))
        return torch.empty_like(x)


def _in_order(x: torch.Tensor) -> None:
    if not x.is_contiguous():
        _note(Kernel("copy", "none", 0.0, 2.0 * x.numel() * x.element_size()))
