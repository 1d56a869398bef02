"""All K per-reward LoRA gradients from two backward passes, whatever K.

The loss is affine in the advantage (loss.py), so every reward's gradient is a sum over images of the same two
vector-Jacobian products, weighted by that reward's own numbers:

    g_k = sum_i  phi0_ki J_i^T q0_i  +  phi1_ki J_i^T q1_i

A LoRA layer's share of J_i^T q_i is the product of its input and of its output gradient for image i, tiny next to the
backward through the frozen weights; so the layers weight it R ways themselves while one backward pass goes by. A row r
of the accumulators is any weighting of images that is wanted: a reward, a reward over half of the prompts, the KL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F


class RowGradients:
    """R weighted sums of per-image gradients of LoRA layers, as accumulators (R, *shape) by parameter name.

    They are float32, whatever the autocast, or float64 where the LoRA is.
    """

    def __init__(self, layers: Mapping[str, torch.nn.Linear], rows: int) -> None:
        self.layers = layers
        self.rows = rows
        self.sums = {n: torch.zeros(rows, *m.weight.shape, device=m.weight.device, dtype=_wide(m)) for n, m in layers.items()}
        self.backwards = 0
        self._weights_RB = torch.empty(0)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, a forward through the layers prepares them for ``backward``."""
        for name, layer in self.layers.items():
            layer.forward = partial(_forward, layer, self, name)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in self.layers.values():
                del layer.forward

    def backward(
        self,
        v_BCHW: torch.Tensor,
        inputs: Sequence[torch.Tensor],
        q_BCHW: torch.Tensor,
        weights_RB: torch.Tensor,
        again: bool = False,
    ) -> None:
        """Add sum_b weights[r, b] J_b^T q_b to every row r. ``again`` keeps the graph for another cotangent.

        Both the image and the text input must be among ``inputs``: with the LoRA frozen, the first block's text-side
        layers see a gradient only if something before them asks for one.
        """
        self._weights_RB = weights_RB
        self.backwards += 1
        torch.autograd.grad(v_BCHW, inputs, q_BCHW, retain_graph=again)

    def _collect(self, name: str, x: torch.Tensor, d: torch.Tensor) -> None:
        images = len(x)
        total = self.sums[name]
        x, d = (a.reshape(images, -1, a.shape[-1]).to(total.dtype) for a in (x, d))
        total.view(self.rows, -1).addmm_(self._weights_RB.to(total.dtype), torch.bmm(d.mT, x).view(images, -1))

    def gram(self) -> np.ndarray:
        """Inner products of the rows, (R, R) in float64, one layer at a time: one float32 product is off by 1e-4."""
        G_RR = torch.zeros(self.rows, self.rows, dtype=torch.float64)
        for total in self.sums.values():
            flat = total.flatten(1).double()
            G_RR += (flat @ flat.mT).cpu()
        return G_RR.numpy()

    def combine(self, w_R: np.ndarray) -> dict[str, torch.Tensor]:
        """sum_r w_r g_r by parameter name."""
        w = torch.as_tensor(w_R)
        return {n: torch.tensordot(w.to(total), total, 1) for n, total in self.sums.items()}


class _Tap(torch.autograd.Function):
    """A linear layer that shows its input and output gradient on the way back.

    It keeps its input through save_for_backward, not by a hook's closure, so gradient checkpointing can drop it.
    """

    @staticmethod
    def forward(ctx, x, weight, rows, name):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.rows, ctx.name = rows, name
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, d):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        ctx.rows._collect(ctx.name, x, d)
        return (d @ weight.to(d.dtype)).to(x.dtype), None, None, None


def _wide(layer: torch.nn.Linear) -> torch.dtype:
    return torch.promote_types(layer.weight.dtype, torch.float32)


def _forward(layer: torch.nn.Linear, rows: RowGradients, name: str, x: torch.Tensor) -> torch.Tensor:
    if not torch.is_grad_enabled() and not x.requires_grad:
        return F.linear(x, layer.weight)
    return _Tap.apply(x, layer.weight, rows, name)
