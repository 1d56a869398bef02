"""Pictures as the scorers take them, whatever a diffusers pipeline returned them as. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from marble_core.types import MarbleError


def as_images(images: Any) -> np.ndarray:
    """uint8 RGB pictures (N, H, W, C) of one PIL image or several, an array (N, H, W, C) or a tensor (N, C, H, W).

    Floats are in [0, 1] and become 8-bit here, so that a score is the score of the saved picture. Raises MarbleError for
    another mode, shape, type or range, and for pictures of several sizes.
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, Sequence):
        return _stack(images)
    tensor = hasattr(images, "detach")
    values = images.detach().cpu().numpy() if tensor else np.asarray(images)
    layout = "(N, 3, H, W)" if tensor else "(N, H, W, 3)"
    if values.ndim != 4 or values.shape[1 if tensor else 3] != 3 or 0 in values.shape:
        raise MarbleError(f"Pictures to score have the shape {layout}, not {values.shape}.")
    return _eight_bits(values.transpose(0, 2, 3, 1) if tensor else values)


def _stack(pictures: Sequence[Any]) -> np.ndarray:
    if not pictures or not all(isinstance(picture, Image.Image) for picture in pictures):
        raise MarbleError("Pictures to score come as PIL images, an array or a tensor, at least one of them.")
    for i, picture in enumerate(pictures):
        if picture.mode != "RGB":
            raise MarbleError(f"Picture {i} to score has the mode {picture.mode!r}: make it RGB, with .convert('RGB').")
        if picture.size != pictures[0].size:
            raise MarbleError(
                f"Picture {i} to score has {picture.size} pixels and the first {pictures[0].size}: give one size."
            )
    return np.stack([np.asarray(picture) for picture in pictures])


def _eight_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise MarbleError(f"Pictures to score are uint8, or floats in [0, 1], not {values.dtype}.")
    if not (values.min() >= 0 and values.max() <= 1):  # NaN too
        raise MarbleError(f"Pictures to score have values from {values.min():.3g} to {values.max():.3g}, not in [0, 1].")
    return np.round(values * 255).astype(np.uint8)
