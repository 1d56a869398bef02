"""All K per-reward LoRA gradients from two backward passes, whatever K.

The loss is affine in functions of the advantage (loss.py), so every reward's gradient is a sum over images of the same two
vector-Jacobian products, weighted by that reward's own numbers:

    g_k = sum_i  phi0_ki J_i^T q0_i  +  phi1_ki J_i^T q1_i

A LoRA layer's share of J_i^T q_i is the product of its input and of its output gradient for image i, tiny next to the
backward through the frozen weights; so the layers weight it J ways themselves while one backward pass goes by. A row j
of the accumulators is any weighting of images that is wanted: a reward, a reward over half of the prompts, the KL.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from marble_core.algorithm.block_recompute import Tape
from marble_core.models.adapters import added
from marble_core.runtime.transfer import to_device

SMALLEST_SCALE = 2.0**-60


@dataclass
class Pass:
    """One backward pass: the cotangent q_BCHW of the velocity, and the weight of each image in each row, weights_JB.

    The cotangent is sent scaled by a power of two that brings its largest entry to about 1, and the layers undo it in their
    wide accumulators: in float16 NFT's q1 (4e-6 on SD3.5-Medium) would be imprecise, its q0 flushed to zero.
    """

    q_BCHW: torch.Tensor
    weights_JB: torch.Tensor
    scale: torch.Tensor = field(init=False)  # (), on the device: nobody waits for it
    collected: set[str] = field(default_factory=set)  # layers that have added their share
    finite: dict[str, torch.Tensor] = field(default_factory=dict)  # by layer, of float16: whether what it saw was finite
    _placed_JB: dict[float, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        largest = self.q_BCHW.abs().max()
        usable = (largest > 0) & torch.isfinite(largest)
        exponent = torch.frexp(torch.where(usable, largest, 0.5)).exponent  # of 0.5 it is 0
        self.scale = torch.ldexp(torch.ones_like(largest), -exponent.clamp(-100, 100))

    @property
    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.q_BCHW).all())

    @property
    def cotangent(self) -> torch.Tensor:
        return self.q_BCHW * self.scale

    def weights_on(self, total: torch.Tensor, factor: float) -> torch.Tensor:
        """Beside the accumulators, times ``factor`` and with the scale undone: a copy to the device a pass, not one a layer."""
        if not self._placed_JB:
            self._placed_JB[1.0] = to_device(self.weights_JB.to(total.dtype), total.device) / self.scale
        if factor not in self._placed_JB:
            self._placed_JB[factor] = factor * self._placed_JB[1.0]
        return self._placed_JB[factor]

    def overflowed(self) -> bool:
        """After the pass: whether layers saw what is not finite, which have not added their share. Looked at once for all layers."""
        if not self.finite:
            return False
        flags = torch.stack(list(self.finite.values())).tolist()
        bad = {name for name, fine in zip(self.finite, flags, strict=True) if not fine}
        self.collected -= bad
        self.finite.clear()
        return bool(bad)

    def again(self) -> Pass:
        """The same pass for the layers that overflowed, at half the scale."""
        self.scale = self.scale / 2
        self._placed_JB.clear()
        return self


class _Collecting:
    """While it is entered the layers add to this pass; it can be entered again and again, a block at a time."""

    def __init__(self, rows: RowGradients, one: Pass) -> None:
        self.rows, self.one = rows, one

    def __enter__(self) -> None:
        self.rows._pass = self.one

    def __exit__(self, *_: object) -> None:
        self.rows._pass = None


class RowGradients:
    """J weighted sums of per-image gradients of LoRA layers, as accumulators (J, *shape) by parameter name.

    They are float32, whatever the autocast, or float64 where the LoRA is. With ``checkpointed``, that transformer's blocks keep
    only their inputs in the forward and are recomputed once for all passes of a micro-batch.
    """

    def __init__(self, layers: Mapping[str, torch.nn.Linear], rows: int, checkpointed: torch.nn.Module | None = None) -> None:
        self.layers = layers
        self.rows = rows
        self.sums = {n: torch.zeros(rows, *m.weight.shape, device=m.weight.device, dtype=_wide(m)) for n, m in layers.items()}
        self.backwards = 0
        self.grad_anchor = torch.zeros((), requires_grad=True)  # the only thing that asks for gradients: see _Tap
        self._tape = Tape(checkpointed) if checkpointed is not None else None
        self._pass: Pass | None = None

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Within it, forwards with gradients through the layers prepare them for ``backward``."""
        for name, layer in self.layers.items():
            layer.forward = partial(_forward, layer, self, name)  # type: ignore[method-assign]
            layer.added_to = partial(_added_to, layer, self, name)  # type: ignore[assignment]
        try:
            with self._tape.recording() if self._tape else nullcontext():
                yield
        finally:
            for layer in self.layers.values():
                del layer.forward, layer.added_to

    def backward(self, v_BCHW: torch.Tensor, passes: Sequence[Pass]) -> None:
        """Add sum_b weights[j, b] times image b's vector-Jacobian product with q to every row j, for each pass. To be called within ``capturing``, once a forward.

        Where float16 overflows, the layers that saw it get their share from a repeated pass at half the scale.
        """
        while passes:
            self.backwards += len(passes)
            if self._tape:
                self._tape.backward(v_BCHW, [(one.cotangent, self._collecting(one)) for one in passes], self.grad_anchor)
            else:
                for one in passes:
                    with self._collecting(one):
                        torch.autograd.grad(v_BCHW, self.grad_anchor, one.cotangent, retain_graph=True, allow_unused=True)
            failed = [one for one in passes if one.overflowed()]
            passes = [one.again() for one in failed if one.scale > SMALLEST_SCALE and one.is_finite]
            if len(passes) < len(failed):  # no scale helps: what is not a number must show, or the step would not be skipped
                for total in self.sums.values():
                    total.fill_(math.nan)
        if self._tape:
            self._tape.calls.clear()

    def _collecting(self, one: Pass) -> _Collecting:
        return _Collecting(self, one)

    def _collect(self, name: str, x: torch.Tensor, d: torch.Tensor, factor: float = 1.0) -> None:
        assert self._pass is not None
        if name in self._pass.collected:
            return
        if d.dtype == torch.float16:
            self._pass.finite[name] = torch.isfinite(d).all()
            d = torch.where(self._pass.finite[name], d, 0.0)
        images, total = len(x), self.sums[name]
        x, d = (a.reshape(images, -1, a.shape[-1]) for a in (x, d))
        each = _products(d.mT, x, total.dtype).view(images, -1)
        total.view(self.rows, -1).addmm_(self._pass.weights_on(total, factor), each)
        self._pass.collected.add(name)

    def gram(self) -> np.ndarray:
        """Inner products of the rows, (J, J) in float64, one layer at a time: one float32 product is off by 1e-4."""
        G_JJ = torch.zeros(self.rows, self.rows, dtype=torch.float64)
        for total in self.sums.values():
            flat = total.flatten(1).double()
            G_JJ += (flat @ flat.mT).cpu()
        return G_JJ.numpy()

    def combine(self, w_J: np.ndarray) -> dict[str, torch.Tensor]:
        """sum_j w_j g_j by parameter name; a row of weight 0 may hold what is not a number."""
        used, w = np.flatnonzero(w_J), torch.as_tensor(w_J[np.flatnonzero(w_J)])
        rows = slice(None) if len(used) == self.rows else torch.as_tensor(used)
        return {n: torch.tensordot(w.to(total), total[rows], 1) for n, total in self.sums.items()}


class _CapturingLinear(torch.autograd.Function):
    """A linear layer that shows its input and output gradient on the way back.

    It keeps its input through save_for_backward, not by a hook's closure, so gradient checkpointing can drop it. The weights
    are frozen, so something else must ask for gradients, or none would reach a layer: the ``grad_anchor``, a number that nothing is
    computed from. What lies before the first layers then asks for none, and nothing is spent on it.
    """

    @staticmethod
    def forward(ctx, x, grad_anchor, weight, rows, name):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.rows, ctx.name = rows, name
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, d):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        ctx.rows._collect(ctx.name, x, d)
        return (d @ weight.to(d.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None, None, None, None, None


class _CapturingSum(torch.autograd.Function):
    """The same for a linear layer whose output is added to another one's, times a factor."""

    @staticmethod
    def forward(ctx, h, result, grad_anchor, weight, factor, rows, name):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(h, weight)
        ctx.rows, ctx.name, ctx.factor = rows, name, factor
        return added(weight, h, result, factor)

    @staticmethod
    def backward(ctx, d):  # type: ignore[no-untyped-def]
        h, weight = ctx.saved_tensors
        ctx.rows._collect(ctx.name, h, d, ctx.factor)
        d_h = ctx.factor * (d @ weight.to(d.dtype)).to(h.dtype) if ctx.needs_input_grad[0] else None
        return d_h, d if ctx.needs_input_grad[1] else None, None, None, None, None, None


def _products(a: torch.Tensor, b: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """a b image by image, summed in ``wide``. A product of two narrow numbers is exact in float32, so on a GPU they need no cast."""
    if a.dtype == b.dtype != wide and wide == torch.float32 and a.device.type != "cpu":
        return torch.bmm(a, b, out_dtype=wide)
    return torch.bmm(a.to(wide), b.to(wide))


def _wide(layer: torch.nn.Linear) -> torch.dtype:
    return torch.promote_types(layer.weight.dtype, torch.float32)


def _forward(layer: torch.nn.Linear, rows: RowGradients, name: str, x: torch.Tensor) -> torch.Tensor:
    if not torch.is_grad_enabled():
        return F.linear(x, layer.weight)
    return _CapturingLinear.apply(x, rows.grad_anchor, layer.weight, rows, name)


def _added_to(
    layer: torch.nn.Linear, rows: RowGradients, name: str, h: torch.Tensor, result: torch.Tensor, factor: float
) -> torch.Tensor:
    if not torch.is_grad_enabled():
        return added(layer.weight, h, result, factor)
    return _CapturingSum.apply(h, result, rows.grad_anchor, layer.weight, factor, rows, name)
