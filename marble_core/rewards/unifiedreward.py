"""UnifiedReward: a vision-language model marks each image, behind an OpenAI-compatible endpoint. See docs/rewards.md, section 7.

For evaluation: a picture costs a generation of an 8 B model. No torch.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from marble_core.rewards.endpoint import PATIENCE, Endpoint, api_key, may_be_sent, short
from marble_core.rewards.self_check import check_colors
from marble_core.types import MarbleError, NoValue, Prompt, RewardCard

INSTRUCTION = """\
Judge how well the picture was made from this caption: {prompt}

Weigh two things. First, does the picture show what the caption says: the objects, how many they are, their properties and
where they are, and nothing that contradicts it? Second, how good is the picture as such: is it clear, plausible, well composed
and free of artefacts?

Explain your judgement briefly. Then end with one line of the form "Final Score: X", X being a number from 1 (bad) to 5
(excellent), decimals allowed."""
_SCALE = r"[(\[][^()\[\]\n]{1,60}[)\]]|(?:(?:from|on\s+a\s+scale\s+(?:of|from))\s+)?1\s*(?:-|–|to)\s*5(?=\s*[:=*])|out\s+of\s+5(?=\s*[:=*])"
_MARK = re.compile(
    rf"final\s+score(?:\s+is)?[\s:：=*_`\"']*(?P<scale>{_SCALE})?[\s:：=*_`\"'\[(<$]*(?P<mark>-?\d+(?:\.\d+)?)(?=(?P<rest>[^\n]*))",
    re.IGNORECASE,
)
_ONE_TO_FIVE = re.compile(r"\D*(?:\b1(?:\.0)?\s*(?:-|–|—|to|\.\.+|/)|out\s+of|max\.?|/)\s*5(?:\.0)?\b\D*|\D+", re.IGNORECASE)
_TOTAL = re.compile(r"[\s*_`\"'\])>$]*(?:points?|stars?|marks?)?[\s(\[]*(?:/|(?:out\s+)?of\s)\s*(\d+(?:\.\d+)?)", re.IGNORECASE)
# What makes it another number: digits that go on (4,5 or 1.2.3), a unit, a range, a second number.
_GOES_ON = re.compile(r"[.,]?\d|[\s*_`\])>$]*(?:%|percent|±|\+|[-–—~]\s*\d|(?:to|or|and)\s+\d)|[ \t]+\d", re.IGNORECASE)
_LOW, _HIGH = 1.0, 5.0


class UnifiedReward:
    """The mark from 1 to 5, divided by 5, as the published values are; applies to every prompt.

    ``url`` is the endpoint's base, such as http://host:17140/v1. Its key comes from the environment variable that
    ``key_variable`` names, and only from there. The published values were asked for in another wording of ``instruction``
    (flow_grpo's rewards.py has it), which names the caption as ``{prompt}``. Pictures are sent as PNG of ``image_size`` pixels,
    ``workers`` at once. An endpoint that cannot be reached, is silent for ``request_timeout`` seconds, or is busy (429, 5xx) is asked
    again, after ``backoff``, 2, 4, ... times as many seconds, for ``patience`` seconds an image in all; then the image has no value.
    An answer without a mark, or with two that differ, is no value either, never a 0.
    """

    name = "unifiedreward"
    value_range = (_LOW / _HIGH, 1.0)
    background = True
    card = RewardCard()  # its 8 B weights are served elsewhere

    def __init__(
        self,
        url: str,
        model: str = "CodeGoat24/UnifiedReward-7b-v1.5",
        instruction: str = INSTRUCTION,
        key_variable: str = "OPENAI_API_KEY",
        image_size: int = 512,
        max_tokens: int = 1024,
        workers: int = 16,
        patience: float = PATIENCE,
        request_timeout: float = 120.0,
        backoff: float = 1.0,
    ) -> None:
        if "{prompt}" not in instruction:
            raise MarbleError("The instruction of the reward 'unifiedreward' must name the caption, as {prompt}.")
        self.model, self.instruction, self.key_variable = model, instruction, may_be_sent(key_variable)
        self.image_size, self.max_tokens = image_size, max_tokens
        self.endpoint = Endpoint(
            url.rstrip("/") + "/chat/completions",
            f"the reward {self.name!r}",
            f"set the environment variable {key_variable}",
            self._key,
            patience,
            request_timeout,
            backoff,
            workers,
        )

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> list[float | NoValue]:
        answers = self.endpoint.ask([self._body(image, prompt) for image, prompt in zip(images_NHWC, prompts, strict=True)])
        return [answer if isinstance(answer, NoValue) else self._mark(answer) for answer in answers]

    def self_check(self) -> None:
        def score(images_NHWC: np.ndarray, prompts: list[Prompt]) -> np.ndarray:
            values = self.score(images_NHWC, prompts)
            for value in values:
                if isinstance(value, NoValue):
                    raise MarbleError(f"{self.endpoint.what} has no mark for a picture of known colour: {value.why}.")
            return np.array(values)

        check_colors(self.name, score)

    def _body(self, image_HWC: np.ndarray, prompt: Prompt) -> dict[str, Any]:
        content = [
            {"type": "image_url", "image_url": {"url": _data_url(image_HWC, self.image_size)}},
            {"type": "text", "text": self.instruction.replace("{prompt}", prompt.text)},
        ]
        messages = [{"role": "user", "content": content}]
        return {"model": self.model, "temperature": 0, "max_tokens": self.max_tokens, "messages": messages}

    def _mark(self, answer: bytes) -> float | NoValue:
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            text = None
        if not isinstance(text, str):
            return NoValue(f"it does not answer as OpenAI's does: {short(answer.decode(errors='replace'), self._key())!r}")
        mark = read_mark(text)
        return NoValue(f"the answer holds no one 'Final Score' from 1 to 5: {short(text)!r}") if mark is None else mark / _HIGH

    def _key(self) -> str:
        return api_key(self.key_variable)


def read_mark(answer: str) -> float | None:
    """The "Final Score" of an answer, from 1 to 5; None where there is none, or another number, or two that differ.

    A scale beside it is not the mark: "Final Score (1-5): 4" is 4. A mark on another scale, a percentage and a range are none.
    """
    marks = {_checked_mark(found) for found in _MARK.finditer(answer)}
    return marks.pop() if len(marks) == 1 else None


def _checked_mark(found: re.Match[str]) -> float | None:
    scale, rest, mark = found["scale"], found["rest"], float(found["mark"])
    total = _TOTAL.match(rest)
    if (scale and not _ONE_TO_FIVE.fullmatch(scale)) or _GOES_ON.match(rest) or (total and float(total[1]) != _HIGH):
        return None
    return mark if _LOW <= mark <= _HIGH else None


def _data_url(image_HWC: np.ndarray, size: int) -> str:
    from PIL import Image

    picture = Image.fromarray(image_HWC)
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
