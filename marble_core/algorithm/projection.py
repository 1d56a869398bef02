"""A random projection of gradients of all layers to D numbers, which keeps inner products without bias."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from marble_core.runtime.seeding import derive


class Projection:
    """Each layer's numbers are cut into blocks of D; each block gets random signs and a random cyclic shift, and all are added.

    With P the projection, E <Px, Py> = <x, y>, and the variance is at most (|x|^2 |y|^2 + <x, y>^2) / D: two numbers of one
    block never meet, two of different blocks meet with probability 1/D (a count sketch, Charikar et al. 2002, whose hash is a
    shift: no scatter, hence the same bits on every run). Signs and shifts are functions of (seed, layer), drawn a layer at a
    time on the CPU and not kept.
    """

    def __init__(self, dimensions: int, seed: int) -> None:
        self.dimensions, self.seed = dimensions, seed

    def __call__(self, layers: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(rows, D) from accumulators (rows, *shape) by name. Linear, so parts of the layers may be projected apart and added."""
        D, total = self.dimensions, None
        for name in sorted(layers):
            x = layers[name].flatten(1)
            generator = torch.Generator().manual_seed(derive(self.seed, "projection", name))
            blocks = -(-x.shape[1] // D)
            sign = torch.randint(0, 2, (x.shape[1],), generator=generator, dtype=torch.int8).to(x.device) * 2 - 1
            shifts = torch.randint(0, D, (blocks,), generator=generator).tolist()
            signed = torch.nn.functional.pad(x * sign, (0, blocks * D - x.shape[1]))
            total = torch.zeros(len(x), D, dtype=x.dtype, device=x.device) if total is None else total
            for b, shift in enumerate(shifts):
                total += signed[:, b * D : (b + 1) * D].roll(shift, 1)
        assert total is not None
        return total
