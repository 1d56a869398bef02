"""The signal: what the gradients of different batches have in common. And what one step has beside it, by where it comes from."""

from __future__ import annotations

import numpy as np

from marble_core.bench.signal.products import Estimate, Products, off_diagonal


def signal_gram(bank: Products, keep: np.ndarray) -> np.ndarray:
    """S_KK = <E g_k, E g_j>, unbiased: the mean product of different batches, which share nothing. Not PSD."""
    S_RR = off_diagonal(bank.means, keep)
    S_KK = S_RR[: bank.K, : bank.K]
    return (S_KK + S_KK.T) / 2


def signal_norms(S_KK: np.ndarray) -> np.ndarray:
    """|E g_k|; NaN where the estimate of its square is not positive."""
    squares = np.diag(S_KK)
    return np.sqrt(np.where(squares > 0, squares, np.nan))


def positive(S_KK: np.ndarray) -> np.ndarray:
    """The nearest positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(S_KK)
    return (vectors * np.clip(values, 0, None)) @ vectors.T


def true_cosines(bank: Products) -> Estimate:
    def statistic(keep: np.ndarray) -> np.ndarray:
        S_KK = signal_gram(bank, keep)
        norms = signal_norms(S_KK)
        return S_KK / np.outer(norms, norms)

    return bank.jackknife(statistic)


def cosines_of_a_step(bank: Products) -> Estimate:
    """What one step sees in their place: the mean over steps of the cosines in its own Gram matrix."""
    own = np.einsum("zfkzfj->zfkj", bank.whole)[:, :, : bank.K, : bank.K]
    norms = np.sqrt(np.einsum("zfkk->zfk", own))
    with np.errstate(invalid="ignore"):
        cosine_ZFKK = own / (norms[..., None] * norms[..., None, :])  # NaN where a step has no gradient
    return bank.jackknife(lambda keep: np.nanmean(cosine_ZFKK[keep], (0, 1)))


def energies(bank: Products) -> dict[str, Estimate]:
    """Of each reward, (K,): ``signal`` |E g_k|^2 and, in its units, the noise of one step ``between_prompts``, ``between_images`` of
    a prompt, and of ``t_eps``; ``consistency``: the signal's share of |g_k|^2; ``cosine``: its root, the expected cosine of a
    step's gradient with the true one. What the bank's design cannot tell apart is NaN.
    """
    X, Y = bank.XY
    own = bank.whole.reshape(bank.Z, X, Y, bank.R, bank.Z, X, Y, bank.R)
    own = np.einsum("zxykzuvk->zxyuvk", own)[..., : bank.K]
    same = np.einsum("zxyxyk->zk", own) / (X * Y)
    images = (np.einsum("zxyuyk->zk", own) - X * Y * same) / (X * (X - 1) * Y or np.nan)  # the same images, another draw
    every = own.sum((1, 2, 3, 4)) - np.einsum("zxyuyk->zk", own)
    prompts = every / (X * X * Y * (Y - 1) or np.nan)  # the same prompts, other images

    def parts(keep: np.ndarray) -> np.ndarray:
        S = np.diag(signal_gram(bank, keep))
        unit = np.where(S > 0, S, np.nan)
        full, of_images, of_prompts = (part[keep].mean(0) for part in (same, images, prompts))
        share = S / full
        rows = S, (of_prompts - S) / unit, (of_images - of_prompts) / unit, (full - of_images) / unit, share
        return np.stack([*rows, np.sqrt(np.where(share > 0, share, np.nan))])

    found = bank.jackknife(parts)
    names = ("signal", "between_prompts", "between_images", "t_eps", "consistency", "cosine")
    return {name: Estimate(value, se) for name, value, se in zip(names, found.value, found.se, strict=True)}
