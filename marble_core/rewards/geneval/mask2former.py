"""GenEval's detector: Mask2Former with a Swin backbone, instances of COCO's 80 classes, by transformers. docs/rewards.md, section 5.

Nothing to compile: its deformable attention is plain torch. Scores, masks and boxes are those of mmdet's instance head; they
were checked against mmdet 3.3 itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import Mask2FormerForUniversalSegmentation

from marble_core.prompts.geneval import CLASSES
from marble_core.rewards.geneval.card import MASK2FORMER
from marble_core.rewards.geneval.mask2former_keys import UNSET, infer_config, modern, to_transformers
from marble_core.rewards.geneval.rules import Detection
from marble_core.rewards.weights.originals import read_original, require_exact
from marble_core.rewards.weights.pretrained import default_device, load_pretrained, place
from marble_core.storage.uri import resolve
from marble_core.types import MarbleError

SHORT, LONG, MULTIPLE = 800, 1333, 32  # pixels: the edges that an image is resized within, and what they are padded to
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
INSTANCES = 100  # (query, class) pairs of an image that are looked at
SURE = 0.5  # of the person in the self-check's photograph


class Mask2Former:
    """Objects with masks, surer than ``least_score``, below which GenEval's thresholds do not go.

    ``checkpoint`` is mmdet's published file (2.x or 3.x; by default the paper's) or a model that transformers saved, such as
    Meta's own ``facebook/mask2former-swin-small-coco-instance``: another training, other scores, not for commercial use.
    """

    classes = CLASSES

    def __init__(
        self,
        checkpoint: str = MASK2FORMER.uri,
        device: str | None = None,
        dtype: str = "fp32",
        batch_size: int = 16,
        least_score: float = 0.05,
    ) -> None:
        self.checkpoint, self.batch_size, self.least_score = checkpoint, batch_size, least_score
        self.model = place(load(checkpoint), device or default_device(), dtype, f"The detector {checkpoint}")
        self.modules = (self.model,)

    @property
    def settings(self) -> dict[str, Any]:
        return {"detector": self.checkpoint}

    def detect(self, image_HWC: np.ndarray) -> list[Detection]:
        return next(self.detect_many(image_HWC[None]))

    def detect_many(self, images_NHWC: np.ndarray) -> Iterator[list[Detection]]:
        """The objects of each image, surest first; ``batch_size`` images in a forward pass."""
        for i in range(0, len(images_NHWC), self.batch_size):
            yield from self._detect_batch(images_NHWC[i : i + self.batch_size])

    def self_check(self) -> None:
        from matplotlib.cbook import get_sample_data

        with Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))) as photograph:
            found = self.detect(np.asarray(photograph.convert("RGB")))
        surest = max((detection.score for detection in found if detection.label == "person"), default=0.0)
        if not surest > SURE:
            raise MarbleError(
                f"The detector {self.checkpoint} is {surest:.2f} sure of the person in a portrait, not above {SURE}. "
                "It is not a detector of COCO's objects, or its file is damaged."
            )

    @torch.no_grad()
    def _detect_batch(self, images_NHWC: np.ndarray) -> Iterator[list[Detection]]:
        pixels, size = preprocess(images_NHWC, self.model.device)
        with torch.autocast(self.model.device.type, enabled=False):
            out = self.model(pixel_values=pixels.to(self.model.dtype))
        for logits_QC, masks_QHW in zip(out.class_queries_logits.float(), out.masks_queries_logits.float(), strict=True):
            yield self._instances(logits_QC, masks_QHW, pixels.shape[2:], size, images_NHWC.shape[1:3])

    @torch.no_grad()
    def _instances(
        self, logits_QC: Tensor, masks_QHW: Tensor, padded: Sequence[int], resized: Sequence[int], original: Sequence[int]
    ) -> list[Detection]:
        """A score is the class's probability times the mean of the mask's inside it; boxes end a pixel after their masks."""
        probability_QC = logits_QC.softmax(-1)[:, :-1]  # without "nothing"
        best, index = probability_QC.flatten().topk(min(INSTANCES, probability_QC.numel()))
        index = index[best > self.least_score]  # a score is at most its class's probability
        query, label = index // probability_QC.shape[1], index % probability_QC.shape[1]
        used, place_of = query.unique(return_inverse=True)
        if not len(used):
            return []
        logits = _resized(masks_QHW[used], padded)[:, : resized[0], : resized[1]]
        logits = _resized(logits, original)
        masks = logits > 0
        inside = (logits.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
        scores = probability_QC[query, label] * inside[place_of]
        masks_np = masks.cpu().numpy()
        found = [
            Detection(CLASSES[c], s, _box(masks_np[q]), masks_np[q])
            for c, s, q in zip(label.tolist(), scores.tolist(), place_of.tolist(), strict=True)
            if s > self.least_score
        ]
        return sorted(found, key=lambda detection: -detection.score)


def preprocess(images_NHWC: np.ndarray, device: torch.device) -> tuple[Tensor, tuple[int, int]]:
    """Normalised RGB pixels (N, C, H, W), padded on the right and below, and the (height, width) before the padding.

    Enlarged as by cv2 and PIL within a grey level; where an image shrinks there is no antialiasing, as in cv2 and mmdet.
    """
    height, width = images_NHWC.shape[1:3]
    scale = min(LONG / max(height, width), SHORT / min(height, width))
    size = (int(height * scale + 0.5), int(width * scale + 0.5))
    pixels = torch.from_numpy(np.array(images_NHWC)).to(device).permute(0, 3, 1, 2).float()
    if size != (height, width):
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False).round()
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    down, across = (-edge % MULTIPLE for edge in size)
    return F.pad((pixels - mean) / std, (0, across, 0, down)), size


def load(checkpoint: str) -> Any:
    """The model in fp32 on the CPU. Raises MarbleError where it is none, or not of COCO's 80 classes."""
    path = resolve(checkpoint)
    model = _from_mmdet(path) if path.is_file() else load_pretrained(Mask2FormerForUniversalSegmentation, path, "The detector")
    if model.config.num_labels != len(CLASSES):
        raise MarbleError(
            f"The detector {checkpoint} knows {model.config.num_labels} classes, not COCO's {len(CLASSES)}: "
            "give one for instance segmentation on COCO."
        )
    return model


def _from_mmdet(path: Path) -> Any:
    state = modern(read_original(path))
    model = Mask2FormerForUniversalSegmentation(infer_config(state, path))
    own = model.state_dict()
    mapped = to_transformers(state) | {name: own[name] for name in UNSET}
    require_exact(mapped, model, path, "mmdet's Mask2Former with a Swin backbone")
    model.load_state_dict(mapped)
    return model


def _resized(masks_QHW: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(masks_QHW[:, None], list(size), mode="bilinear", align_corners=False)[:, 0]


def _box(mask_HW: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
