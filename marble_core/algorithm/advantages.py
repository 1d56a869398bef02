"""One advantage estimator per reward. NaN means that there is no value: no reduction here lets it through."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np

from marble_core.config.methods import Mixing
from marble_core.types import RewardTable

EPSILON = 1e-4  # [C]


@dataclass(frozen=True)
class Advantages:
    """A_NK, zero where mask_NK is false, and ``A_N``, one mixed advantage an image for the methods that want it.

    ``missing_NK``: a reward applies to the image and has no value; None where each has one.
    """

    A_NK: np.ndarray
    mask_NK: np.ndarray
    A_N: np.ndarray
    missing_NK: np.ndarray | None = None

    @property
    def count_K(self) -> np.ndarray:
        """n_k: the images of the whole step that have a value of the reward; images with A = 0 count."""
        return self.mask_NK.sum(0)

    @property
    def whole_N(self) -> np.ndarray:
        """The images that lack no value: a mean over an image's rewards is comparable among these alone."""
        return np.ones(len(self.A_NK), dtype=bool) if self.missing_NK is None else np.logical_not(self.missing_NK.any(1))

    @property
    def seen_N(self) -> np.ndarray:
        """The images that have a value, or to which no reward applies."""
        return np.logical_or(self.whole_N, self.mask_NK.any(1))

    def clamped(self, maximum: float) -> tuple[Advantages, float]:
        """Advantages within [-maximum, maximum], and the share of entries that this changed: of the mixed ones where there are
        any, else of the valid ones."""
        counted = self.A_N if self.A_N.any() else self.A_NK[self.mask_NK]
        changed = float((np.abs(counted) > maximum).mean()) if len(counted) else 0.0
        A_NK, A_N = (np.clip(A, -maximum, maximum) for A in (self.A_NK, self.A_N))
        return replace(self, A_NK=A_NK, A_N=A_N), changed


def estimate(table: RewardTable, group_N: np.ndarray, std: str, mixing: Mixing | None = None) -> Advantages:
    """A_ik = (R_ik - mean over the valid images of the prompt) / (sigma_k + 1e-4), and A_N by ``mixing``.

    sigma_k is the population std over all valid raw R_k of the step (``std="batch"`` [C]) or of the prompt's group
    (``"group"`` [P]). A group of one valid image or of equal rewards has A = 0. ``mixing="rewards"``: A_N is the advantage of
    the mean of an image's valid rewards; ``"advantages"``: the mean of its valid group advantages, whitened over the step. An image
    that lacks a value of a reward that applies to it has no mixed advantage: its mean would be one of other rewards.
    """
    mask_NK = table.mask_NK
    A_NK = np.where(mask_NK, _centre_and_scale(table.R_NK, group_N, std), 0.0)
    found = Advantages(A_NK, mask_NK, np.zeros(len(group_N)), table.missing_NK)
    whole_NK = np.where(found.whole_N[:, None], table.R_NK, np.nan)
    if mixing == "rewards":
        A_N = np.nan_to_num(_centre_and_scale(_mean(whole_NK)[:, None], group_N, std)[:, 0])
        return replace(found, A_N=A_N)
    if mixing == "advantages":
        mixed_N = _mean(np.where(~np.isnan(whole_NK), _centre_and_scale(whole_NK, group_N, "group"), np.nan))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no image has a value
            A_N = np.nan_to_num((mixed_N - np.nanmean(mixed_N)) / (np.nanstd(mixed_N) + EPSILON))
        return replace(found, A_N=A_N)
    return found


def _mean(values_NK: np.ndarray) -> np.ndarray:
    """Over an image's valid entries; NaN for an image that has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values_NK, 1)


def _centre_and_scale(R_NK: np.ndarray, group_N: np.ndarray, std: str) -> np.ndarray:
    centred = np.full_like(R_NK, np.nan)
    sigma = np.zeros_like(R_NK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column or group without valid entries stays NaN
        sigma[:] = np.nanstd(R_NK, 0)
        for group in np.unique(group_N):
            rows = group_N == group
            centred[rows] = R_NK[rows] - np.nanmean(R_NK[rows], 0)
            if std == "group":
                sigma[rows] = np.nanstd(R_NK[rows], 0)
            equal = np.nanmax(R_NK[rows], 0) == np.nanmin(R_NK[rows], 0)
            centred[np.ix_(rows, equal)] = 0.0  # the mean of equal numbers may differ from them in the last bit
    return centred / (sigma + EPSILON)
