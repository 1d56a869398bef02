"""OCR: how much of the wanted text can be read, with PP-OCR's weights from rapidocr's wheel. See docs/rewards.md, section 3."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from marble_core.rewards.background import Call
from marble_core.types import MarbleError, Prompt

Reader = Callable[[Sequence[np.ndarray]], list[str]]  # pictures (H, W, C) uint8 RGB -> what is read in each

GROUND_DISTANCE = 130  # sum over the channels, from which a pixel is not ground
LINE_HEIGHT = 48  # of the recogniser's input, in pixels
LINE_WIDTH = 128  # its least width: short words need no more, and the time is linear in it
MIN_ROWS, MARGIN = 16, 4


class Ocr:
    """1 - distance / len(target) in [0, 1], where text around the target costs nothing; beside it ``whole_text``, where it does.

    Applies to prompts that have a target. ``detection: false`` reads each picture as one line of text, cropped to its rows: for
    small pictures of one word, ten times faster. ``workers`` threads read at once, one a CPU unless told otherwise.

    ``published`` restores what MARBLE released: ``any_quote`` (a target is also what follows the first quotation mark of any
    prompt, up to the next or the end) and ``failure_is_zero`` (a picture on which the engine fails scores 0, where ours stops
    the run). Either can be set by itself. ``reader`` replaces the engine (tests).
    """

    name = "ocr"
    value_range = (0.0, 1.0)
    side = ("whole_text",)
    background = True

    def __init__(
        self,
        detection: bool = True,
        workers: int | None = None,
        published: bool = False,
        any_quote: bool | None = None,
        failure_is_zero: bool | None = None,
        reader: Reader | None = None,
    ) -> None:
        self.reader = reader or (read_texts if detection else read_lines)
        self.workers = workers or _cpus()
        self.any_quote = published if any_quote is None else any_quote
        self.failure_is_zero = published if failure_is_zero is None else failure_is_zero
        self.settings = {"detection": detection, "any_quote": self.any_quote, "failure_is_zero": self.failure_is_zero}

    def applies(self, prompt: Prompt) -> bool:
        return bool(_normal(self._target(prompt)))

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        """(N, 2): the reward and ``whole_text``."""
        parts = [part for part in np.array_split(np.arange(len(prompts)), self.workers) if len(part)]
        calls = [Call(self._read, list(images_NHWC[part])) for part in parts]
        texts = [text for call in calls for text in call.result()]
        targets = [self._target(prompt) for prompt in prompts]
        return np.array([(similarity(*pair), whole_similarity(*pair)) for pair in zip(texts, targets, strict=True)])

    def _target(self, prompt: Prompt) -> str:
        quoted = prompt.text.split('"')[1] if self.any_quote and '"' in prompt.text else ""
        return prompt.target or quoted

    def _read(self, images: Sequence[np.ndarray]) -> list[str]:
        try:
            return self.reader(images)
        except Exception:
            if not self.failure_is_zero:
                raise
            return [""] if len(images) == 1 else [text for image in images for text in self._read([image])]

    def self_check(self) -> None:
        picture = Image.new("RGB", (256, 128), "white")
        ImageDraw.Draw(picture).text((24, 24), "HELLO", fill="black", font=ImageFont.load_default(64), stroke_width=1)
        value = self.score(np.asarray(picture)[None], [Prompt("", "ocr", target="HELLO")])[0, 0]
        if value != 1:
            raise MarbleError(
                f"The reward {self.name!r} reads a clear 'HELLO' at {value:.2f} of 1: check rapidocr and onnxruntime."
            )


def similarity(text: str, target: str) -> float:
    """The released reward: blanks and case do not count, and text around the target costs nothing."""
    from rapidfuzz.distance import Levenshtein

    text, target = _normal(text), _normal(target)
    distance = 0 if target in text else min(Levenshtein.distance(text, target), len(target))
    return 1 - distance / len(target)


def whole_similarity(text: str, target: str) -> float:
    """1 - distance / length of the longer: 1 only where nothing else is written, so that writing much is no way to it."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_similarity(_normal(text), _normal(target))


def _normal(text: str) -> str:
    return text.replace(" ", "").lower()


def _cpus() -> int:
    """Those that this process may use, shared with the others that torchrun started on this machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def read_texts(images: Sequence[np.ndarray]) -> list[str]:
    """Detect the lines of each picture and read them in reading order."""
    return ["".join(_engine(True)(image[..., ::-1]).txts or ()) for image in images]


def read_lines(images: Sequence[np.ndarray]) -> list[str]:
    """Read each picture as one line, without detection."""
    from rapidocr.ch_ppocr_rec import TextRecInput

    lines = [np.ascontiguousarray(crop_line(image)[..., ::-1]) for image in images]
    return list(_engine(False)._load_rec_model()(TextRecInput(img=lines)).txts)


def crop_line(image_HWC: np.ndarray) -> np.ndarray:
    """The rows that hold something other than the ground (the colour of the picture's upper and lower edge), and a margin."""
    height = len(image_HWC)
    edge = np.concatenate([image_HWC[:2], image_HWC[-2:]]).reshape(-1, 3)
    distance = np.abs(image_HWC.astype(np.float32) - np.median(edge, axis=0)).sum(-1)
    rows = np.flatnonzero((distance > GROUND_DISTANCE).sum(1) > 1)
    if len(rows):
        top, bottom = max(0, rows[0] - MARGIN), min(height, rows[-1] + 1 + MARGIN)
        if bottom - top >= MIN_ROWS:
            return image_HWC[top:bottom]
    return image_HWC[height // 4 : height - height // 4]


@cache
def _engine(detection: bool) -> Any:
    try:
        from rapidocr import RapidOCR
    except ModuleNotFoundError as error:
        raise MarbleError(f"The reward 'ocr' needs {error.name}: pip install 'marble-core[rewards]'.") from error
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    return RapidOCR(
        params={
            "Global.use_det": detection,
            "Global.use_cls": False,
            "Global.log_level": "error",
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            **(
                {"Det.limit_side_len": 960, "Det.limit_type": "max"}  # as paddleocr has it
                if detection
                else {"Rec.rec_img_shape": [3, LINE_HEIGHT, LINE_WIDTH]}
            ),
        }
    )
