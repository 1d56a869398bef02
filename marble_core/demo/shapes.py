"""The demo's detector: shapes on a plain ground by connected components, their class by template, their colour by palette.

It stands behind the same seam as a real detector (marble_core.rewards.geneval.rules.Detector). What is no clear shape comes as the
class ``blob``, which the demo's prompts exclude, so that clutter costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random

import numpy as np
from PIL import Image
from scipy import ndimage

from marble_core.demo.draw import OVERSAMPLING, draw, draw_shape
from marble_core.demo.prompts import BLOB
from marble_core.demo.scenes import PALETTE, ROW, SHAPES, SIZE, Shapes, Thing
from marble_core.rewards.geneval.rules import Detection
from marble_core.types import MarbleError

UNKNOWN_COLOR = "unknown"
GROUND_DISTANCE = 130  # sum over the channels of absolute grey levels, likewise below
COLOR_DISTANCE = 120
MIN_AREA = 40  # pixels
MIN_OVERLAP = 0.72  # intersection over union with the template
ASPECT = (0.65, 1.5)
TEMPLATE_SIDE = 24


class ShapesDetector:
    """Detector and colour classifier for 64 x 64 images of the synthetic world. A shape is sure (score 1) or a blob."""

    classes = (*SHAPES, BLOB)
    color_names = tuple(PALETTE)

    def detect(self, image_HWC: np.ndarray) -> list[Detection]:
        labels, count = ndimage.label(_foreground(image_HWC))
        found = []
        for index, (rows, columns) in enumerate(ndimage.find_objects(labels, count), 1):
            mask = labels == index
            if mask.sum() >= MIN_AREA:
                box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
                found.append(Detection(_shape(mask[rows, columns]), 1.0, box, mask))
        return found

    def colors(self, image_HWC: np.ndarray, detections: Sequence[Detection]) -> list[str]:
        return [_color(image_HWC, d.mask) if d.mask is not None else UNKNOWN_COLOR for d in detections]

    def self_check(self) -> None:
        scene = Shapes((Thing("red", "circle"), Thing("blue", "star")), "white", ROW)
        image = np.asarray(draw(scene, Random(0)))
        detections = sorted(self.detect(image), key=lambda d: d.box)
        read = list(zip(self.colors(image, detections), (d.label for d in detections), strict=True))
        if read != [("red", "circle"), ("blue", "star")]:
            raise MarbleError(f"The shapes detector reads a red circle left of a blue star as {read}: its templates are wrong.")


def _foreground(image_HWC: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels that are not of the ground's colour, the median of the outer two rows and columns."""
    image = image_HWC.astype(np.float32)
    edges = (image[:2], image[-2:], image[:, :2], image[:, -2:])
    ground = np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)
    return np.abs(image - ground).sum(-1) > GROUND_DISTANCE


def _shape(mask: np.ndarray) -> str:
    """The class of a component, cut out to its box."""
    height, width = mask.shape
    if not ASPECT[0] < width / height < ASPECT[1]:
        return BLOB
    own = _normalised(mask)
    overlaps = {shape: (own & template).sum() / (own | template).sum() for shape, template in _templates().items()}
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= MIN_OVERLAP else BLOB


def _color(image_HWC: np.ndarray, mask: np.ndarray) -> str:
    """The palette's nearest to the median inside the component, away from its blurred edge."""
    inner = ndimage.binary_erosion(mask, iterations=2)
    median = np.median(image_HWC[inner if inner.any() else mask], axis=0)
    distances = {color: np.abs(median - np.array(rgb)).sum() for color, rgb in PALETTE.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] < COLOR_DISTANCE else UNKNOWN_COLOR


@cache
def _templates() -> dict[str, np.ndarray]:
    templates = {}
    for shape in SHAPES:
        canvas = Image.new("RGB", (SIZE * OVERSAMPLING,) * 2)
        draw_shape(canvas, shape, (SIZE / 2, SIZE / 2), 18, (255, 255, 255))
        mask = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX))[..., 0] > 127
        templates[shape] = _normalised(mask[ndimage.find_objects(mask.astype(int))[0]])
    return templates


def _normalised(mask: np.ndarray) -> np.ndarray:
    side = (TEMPLATE_SIDE, TEMPLATE_SIDE)
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(side, Image.Resampling.BILINEAR)) > 127
