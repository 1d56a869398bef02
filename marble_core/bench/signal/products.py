"""All inner products of a bank, and errors by leaving out a batch. Everything that is asked of a bank is answered from these.

Axes here, beside those of types.py: Z batches, X draws of (t, eps), Y subgroups of images; F = X Y steps of a batch; J rows of a
step over its halves, as ``SplitHalf`` has them; R = J / 2 rows of a whole step, the K rewards first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from marble_core.algorithm.split_half import SplitHalf
from marble_core.bench.signal import batches


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error by the jackknife over batches, of one shape. NaN: not to be had from these batches."""

    value: np.ndarray
    se: np.ndarray


@dataclass(frozen=True)
class Products:
    """Inner products P_ZXYJZXYJ, float64. ``names`` are the K rewards, ``mixed`` the rows behind them."""

    names: tuple[str, ...]
    mixed: tuple[str, ...]
    P: np.ndarray

    @property
    def Z(self) -> int:
        return self.P.shape[0]

    @property
    def XY(self) -> tuple[int, int]:
        return self.P.shape[1], self.P.shape[2]

    @property
    def F(self) -> int:
        return self.P.shape[1] * self.P.shape[2]

    @property
    def K(self) -> int:
        return len(self.names)

    @property
    def R(self) -> int:
        return self.P.shape[3] // 2

    @cached_property
    def whole(self) -> np.ndarray:
        """P_ZFRZFR of whole steps, both halves together."""
        Z, (X, Y), R = self.Z, self.XY, self.R
        return self.P.reshape(Z, X * Y, 2, R, Z, X * Y, 2, R).sum((2, 6))

    @cached_property
    def means(self) -> np.ndarray:
        """P_ZZRR of the batches' mean gradients. Its diagonal, a batch with itself, holds noise beside the signal."""
        return self.whole.mean((1, 4)).transpose(0, 2, 1, 3)

    def step(self, z: int, f: int, rewards: Sequence[int]) -> SplitHalf:
        """What step f of batch z sees of these rewards."""
        rows = [*rewards, *(self.R + k for k in rewards)]
        x, y = divmod(f, self.XY[1])
        return SplitHalf(self.P[z, x, y][:, z, x, y][np.ix_(rows, rows)])

    def jackknife(self, statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        """``statistic`` (batches that are used -> values) of all, and its error from leaving out each batch once."""
        every = np.arange(self.Z)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = np.asarray(statistic(every), dtype=float)
            if self.Z < 3:
                return Estimate(value, np.full(value.shape, np.nan))
            without = np.array([statistic(np.delete(every, z)) for z in every])
            spread = np.square(without - without.mean(0)).sum(0)
            return Estimate(value, np.sqrt((self.Z - 1) / self.Z * spread))


def products(names: Sequence[str], paths: Sequence[Path]) -> Products:
    """Of the batches in these files, one parameter at a time."""
    return of_layers(names, tuple(batches.MIXED), batches.layers(paths))


def of_layers(names: Sequence[str], mixed: Sequence[str], layers: Iterable[torch.Tensor]) -> Products:
    """Of gradients (Z, X, Y, J, size) that are given one parameter at a time; float64, for a float32 product is off by 1e-4."""
    total: torch.Tensor | None = None
    shape: tuple[int, ...] = ()
    for layer in layers:
        shape = tuple(layer.shape[:-1])
        flat = layer.reshape(-1, layer.shape[-1]).double()
        total = flat @ flat.mT if total is None else total.addmm_(flat, flat.mT)
    assert total is not None, "a bank has a batch, and a batch a gradient"
    return Products(tuple(names), tuple(mixed), total.reshape(*shape, *shape).numpy())


def off_diagonal(values_ZZ: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The mean over ordered pairs of different batches among ``keep``; further axes stay."""
    n = len(keep)
    kept = values_ZZ[np.ix_(keep, keep)]
    return (kept.sum((0, 1)) - np.einsum("ii...->...", kept)) / (n * (n - 1) or np.nan)
