"""Witnesses: numbers of an image, or of a prompt's images, that no reward is made of. A policy that hacks a reward moves them.

Formulas and thresholds in docs/watching.md, section 2. Pure numpy.
"""

from __future__ import annotations

import numpy as np

EDGE = 0.05  # change of luma from a pixel to its neighbours, of a range of 1, from which on it is an edge
DARK = 0.15  # luma below which a pixel is dark
LEVELS = 4  # of each channel in the histogram of colours
OF_IMAGES = ("edge_density", "colour_entropy", "dark_share")
LATENT_NORM, DIVERSITY = "latent_norm", "diversity"


def of_images(images_NHWC: np.ndarray) -> dict[str, np.ndarray]:
    """``OF_IMAGES`` (N,) of uint8 RGB images: shares in [0, 1], the entropy in bits, in [0, 6]."""
    luma_NHW = (images_NHWC / 255.0) @ np.array([0.299, 0.587, 0.114])
    across, down = luma_NHW[:, :-1, 1:] - luma_NHW[:, :-1, :-1], luma_NHW[:, 1:, :-1] - luma_NHW[:, :-1, :-1]
    values = (
        (np.hypot(across, down) > EDGE).mean(axis=(1, 2)),
        np.array([_colour_entropy(image) for image in images_NHWC]),
        (luma_NHW < DARK).mean(axis=(1, 2)),
    )
    return dict(zip(OF_IMAGES, values, strict=True))


def latent_norm(x0_NX: np.ndarray) -> np.ndarray:
    """Root mean square (N,) of the numbers of each image's clean latents."""
    return np.sqrt(np.square(x0_NX.astype(np.float64)).mean(axis=1))


def ties(R_MI: np.ndarray) -> np.ndarray:
    """1 for each group whose I rewards are equal, which gives them no advantage, else 0; NaN where the reward does not apply."""
    return np.where(np.isnan(R_MI).any(axis=1), np.nan, R_MI.max(axis=1) == R_MI.min(axis=1))


def _colour_entropy(image_HWC: np.ndarray) -> float:
    level_X3 = image_HWC.reshape(-1, 3).astype(np.int64) * LEVELS // 256
    counts = np.bincount(level_X3 @ np.array([LEVELS**2, LEVELS, 1]), minlength=LEVELS**3)
    share = counts[counts > 0] / counts.sum()
    return float(max(0.0, -(share * np.log2(share)).sum()))
