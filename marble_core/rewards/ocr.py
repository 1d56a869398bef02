"""OCR: how much of the wanted text can be read, with PP-OCR's weights from rapidocr's wheel. See shared/rewards.md, section 3."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from marble_core.types import MarbleError, Prompt

Reader = Callable[[Sequence[np.ndarray]], list[str]]  # pictures (H, W, C) uint8 RGB -> what is read in each

GROUND_DISTANCE = 130  # sum over the channels, from which a pixel is not ground
LINE_HEIGHT = 48  # of the recogniser's input, in pixels
LINE_WIDTH = 128  # its least width: short words need no more, and the time is linear in it
MIN_ROWS, MARGIN = 16, 4


class Ocr:
    """1 - distance / len(target) in [0, 1]; applies to prompts that have a target.

    ``detection: false`` reads each picture as one line of text, cropped to its rows: for small pictures of one word, ten times
    faster. ``workers`` threads read at once. ``reader`` replaces the engine (tests).
    """

    name = "ocr"
    value_range = (0.0, 1.0)
    background = True

    def __init__(self, detection: bool = True, workers: int = 2, reader: Reader | None = None) -> None:
        self.reader = reader or (read_texts if detection else read_lines)
        self.workers = workers

    def applies(self, prompt: Prompt) -> bool:
        return bool(prompt.target and prompt.target.replace(" ", ""))

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        parts = [part for part in np.array_split(np.arange(len(prompts)), self.workers) if len(part)]
        with ThreadPoolExecutor(self.workers) as pool:
            texts = [text for found in pool.map(lambda part: self.reader(list(images_NHWC[part])), parts) for text in found]
        return np.array([similarity(text, prompt.target or "") for text, prompt in zip(texts, prompts, strict=True)])

    def self_check(self) -> None:
        picture = Image.new("RGB", (256, 128), "white")
        ImageDraw.Draw(picture).text((24, 24), "HELLO", fill="black", font=ImageFont.load_default(64), stroke_width=1)
        value = self.score(np.asarray(picture)[None], [Prompt("", "ocr", target="HELLO")])[0]
        if value != 1:
            raise MarbleError(
                f"The reward {self.name!r} reads a clear 'HELLO' at {value:.2f} of 1: check rapidocr and onnxruntime."
            )


def similarity(text: str, target: str) -> float:
    """The released reward: blanks and case do not count, and text around the target costs nothing."""
    from rapidfuzz.distance import Levenshtein

    text, target = (value.replace(" ", "").lower() for value in (text, target))
    distance = 0 if target in text else min(Levenshtein.distance(text, target), len(target))
    return 1 - distance / len(target)


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
        raise MarbleError(f"The reward 'ocr' needs {error.name}: pip install 'marble[rewards]'.") from error
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
