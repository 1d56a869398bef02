"""OCR: how much of the wanted text can be read, with PP-OCR's weights from rapidocr's wheel. See docs/rewards.md, section 3."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from marble_core.rewards.background import Call
from marble_core.rewards.ocr_alphabet import OCR_LANGUAGES, recogniser_uri
from marble_core.rewards.ocr_prompts import can_use, check_readable
from marble_core.rewards.ocr_text import as_code_points, as_read, both_as_code_points, both_as_read, target_of
from marble_core.runtime import cpus
from marble_core.storage.artifacts import Part
from marble_core.storage.uri import resolve
from marble_core.types import MarbleError, Options, Prompt, RewardAsset, RewardCard

Reader = Callable[[Sequence[np.ndarray]], list[str]]  # images (H, W, C) uint8 RGB -> what is read in each

GROUND_DISTANCE = 130  # sum over the channels, from which a pixel is not ground
LINE_HEIGHT = 48  # of the recogniser's input, in pixels
LINE_WIDTH = 128  # its least width: short words need no more, and the time is linear in it
MIN_ROWS, MARGIN = 16, 4


def _assets(options: Options) -> list[RewardAsset]:
    uri = OCR_LANGUAGES.get(str(options.get("language")))
    return [RewardAsset(uri, "file", "Apache-2.0", "about 8 MB", "a recogniser of PP-OCRv5")] if uri else []


class Ocr:
    """1 - distance / len(target) in [0, 1], where text around the target costs nothing; beside it ``whole_text``, where it does.

    Applies to prompts that have a target. ``detection: false`` reads each image as one line of text, cropped to its rows: for
    small images of one word, ten times faster. ``language`` is a recogniser other than the wheel's, one of OCR_LANGUAGES in
    ocr_alphabet.py, which comes into the model cache. ``workers`` threads read at once, one a CPU unless told otherwise.

    ``published`` restores what MARBLE released: ``any_quote`` (a target is also what follows the first quotation mark of any
    prompt, up to the next or the end), ``failure_is_zero`` (an image on which the engine fails scores 0, where ours has
    no value) and ``code_points`` (characters are the same where their code points are, but for case and blanks; ours are the same
    where a reader takes them to be, see ocr_text.py). Each can be set by itself. ``reader`` replaces the engine (tests).
    """

    name = "ocr"
    value_range = (0.0, 1.0)
    side = ("whole_text",)
    background = True
    card = RewardCard(
        _assets,
        can_use,
        check_readable,
        host_memory=100_000_000,
        cpu_seconds=0.22,  # the most that was measured (.12 to .22)
        says="How much of the text that the prompt wants can be read in the image, 0 to 1.",
    )  # rapidocr's sessions

    def __init__(
        self,
        detection: bool = True,
        workers: int | None = None,
        published: bool = False,
        any_quote: bool | None = None,
        failure_is_zero: bool | None = None,
        code_points: bool | None = None,
        language: str | None = None,
        reader: Reader | None = None,
    ) -> None:
        other = recogniser_uri({"language": language})
        path = resolve(other, Part.FILE) if other and not reader else None
        self.reader = reader or partial(read_texts if detection else read_lines, recogniser=path)
        self.workers = workers or _cpus()
        self.any_quote = published if any_quote is None else any_quote
        self.failure_is_zero = published if failure_is_zero is None else failure_is_zero
        self.code_points = published if code_points is None else code_points
        self.settings = {
            "detection": detection,
            "any_quote": self.any_quote,
            "failure_is_zero": self.failure_is_zero,
            "code_points": self.code_points,
            "language": language,
        }

    def applies(self, prompt: Prompt) -> bool:
        return bool((as_code_points if self.code_points else as_read)(target_of(prompt, self.any_quote)))

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        """(N, 2): the reward and ``whole_text``."""
        parts = [part for part in np.array_split(np.arange(len(prompts)), self.workers) if len(part)]
        calls = [Call(self._read, list(images_NHWC[part])) for part in parts]
        texts = [text for call in calls for text in call.result()]
        compared = both_as_code_points if self.code_points else both_as_read
        pairs = [compared(text, target_of(prompt, self.any_quote)) for text, prompt in zip(texts, prompts, strict=True)]
        return np.array([(similarity(*pair), whole_similarity(*pair)) for pair in pairs])

    def _read(self, images: Sequence[np.ndarray]) -> list[str]:
        try:
            return self.reader(images)
        except Exception:
            if not self.failure_is_zero:
                raise
            return [""] if len(images) == 1 else [text for image in images for text in self._read([image])]

    def self_check(self) -> None:
        from PIL import Image, ImageDraw, ImageFont

        picture = Image.new("RGB", (256, 128), "white")
        ImageDraw.Draw(picture).text((24, 24), "HELLO", fill="black", font=ImageFont.load_default(64), stroke_width=1)
        value = self.score(np.asarray(picture)[None], [Prompt("", "ocr", {"text": "HELLO"})])[0, 0]
        if value != 1:
            raise MarbleError(
                f"The reward {self.name!r} reads a clear 'HELLO' at {value:.2f} of 1: check rapidocr and onnxruntime."
            )


def similarity(text: str, target: str) -> float:
    """The released formula in [0, 1], of two texts made comparable: text around the target costs nothing."""
    from rapidfuzz.distance import Levenshtein

    distance = 0 if target in text else min(Levenshtein.distance(text, target), len(target))
    return 1 - distance / len(target)


def whole_similarity(text: str, target: str) -> float:
    """1 - distance / length of the longer: 1 only where nothing else is written, so that writing much is no way to it."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_similarity(text, target)


def _cpus() -> int:
    """Those that this process may use, shared with the others that torchrun started on this machine."""
    return max(1, cpus.usable() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def read_texts(images: Sequence[np.ndarray], recogniser: Path | None = None) -> list[str]:
    """Detect the lines of each image and read them in reading order; by the wheel's recogniser unless another is given."""
    return ["".join(_engine(True, recogniser)(image[..., ::-1]).txts or ()) for image in images]


def read_lines(images: Sequence[np.ndarray], recogniser: Path | None = None) -> list[str]:
    """Read each image as one line, without detection."""
    from rapidocr.ch_ppocr_rec import TextRecInput

    lines = [np.ascontiguousarray(crop_line(image)[..., ::-1]) for image in images]
    return list(_engine(False, recogniser)._load_rec_model()(TextRecInput(img=lines)).txts)


def crop_line(image_HWC: np.ndarray) -> np.ndarray:
    """The rows that hold something other than the ground (the colour of the image's upper and lower edge), and a margin."""
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
def _engine(detection: bool, recogniser: Path | None) -> Any:
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
            **({"Rec.model_path": str(recogniser)} if recogniser else {}),
            **(
                {"Det.limit_side_len": 960, "Det.limit_type": "max"}  # as paddleocr has it
                if detection
                else {"Rec.rec_img_shape": [3, LINE_HEIGHT, LINE_WIDTH]}
            ),
        }
    )
