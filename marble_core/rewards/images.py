"""Images as the scorers take them, whatever a diffusers pipeline returned them as. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from marble_core.types import MarbleError


def as_images(images: Any) -> np.ndarray:
    """uint8 RGB images (N, H, W, C) of one PIL image or several, an array (N, H, W, C) or a tensor (N, C, H, W).

    Floats are in [0, 1] and become 8-bit here, so that a score is the score of the saved image. Raises MarbleError for
    another mode, shape, type or range, and for images of several sizes.
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, Sequence):
        return _stack(images)
    tensor = hasattr(images, "detach")
    values = images.detach().cpu().numpy() if tensor else np.asarray(images)
    layout = "(N, 3, H, W)" if tensor else "(N, H, W, 3)"
    if values.ndim != 4 or values.shape[1 if tensor else 3] != 3 or 0 in values.shape:
        raise MarbleError(f"Images to score have the shape {layout}, not {values.shape}.")
    return _eight_bits(values.transpose(0, 2, 3, 1) if tensor else values)


def _stack(images: Sequence[Any]) -> np.ndarray:
    if not images or not all(isinstance(image, Image.Image) for image in images):
        raise MarbleError("Images to score come as PIL images, an array or a tensor, at least one of them.")
    for i, image in enumerate(images):
        if image.mode != "RGB":
            raise MarbleError(f"Image {i} to score has the mode {image.mode!r}: make it RGB, with .convert('RGB').")
        if image.size != images[0].size:
            raise MarbleError(f"Image {i} to score has {image.size} pixels and the first {images[0].size}: give one size.")
    return np.stack([np.asarray(image) for image in images])


def _eight_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise MarbleError(f"Images to score are uint8, or floats in [0, 1], not {values.dtype}.")
    if not (values.min() >= 0 and values.max() <= 1):  # NaN too
        raise MarbleError(f"Images to score have values from {values.min():.3g} to {values.max():.3g}, not in [0, 1].")
    return np.round(values * 255).astype(np.uint8)
