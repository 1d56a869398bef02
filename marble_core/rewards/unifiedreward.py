"""UnifiedReward: a vision-language model marks each image, behind an OpenAI-compatible endpoint. See docs/rewards.md, section 7.

For evaluation: a picture costs a generation of an 8 B model. No torch.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import urllib3
from PIL import Image

from marble_core.rewards.self_check import check_colors
from marble_core.types import MarbleError, Prompt

INSTRUCTION = """\
Judge how well the picture was made from this caption: {prompt}

Weigh two things. First, does the picture show what the caption says: the objects, how many they are, their properties and
where they are, and nothing that contradicts it? Second, how good is the picture as such: is it clear, plausible, well composed
and free of artefacts?

Explain your judgement briefly. Then end with one line of the form "Final Score: X", X being a number from 1 (bad) to 5
(excellent), decimals allowed."""
_SCALE = r"[(\[][^()\[\]\n]{1,60}[)\]]|(?:(?:from|on\s+a\s+scale\s+(?:of|from))\s+)?1\s*(?:-|–|to)\s*5(?=\s*[:=*])|out\s+of\s+5(?=\s*[:=*])"
_MARK = re.compile(
    rf"final\s+score(?:\s+is)?[\s:=*_\"']*(?P<scale>{_SCALE})?[\s:=*_\"'\[(]*(?P<mark>-?\d+(?:\.\d+)?)(?=(?P<rest>[^\n]*))",
    re.IGNORECASE,
)
_ONE_TO_FIVE = re.compile(r"\D*(?:\b1(?:\.0)?\s*(?:-|–|—|to|\.\.+|/)|out\s+of|max\.?|/)\s*5(?:\.0)?\b\D*|\D+", re.IGNORECASE)
_TOTAL = re.compile(r"[\s*_\"'\])]*(?:points?|stars?|marks?)?[\s(\[]*(?:/|(?:out\s+)?of\s)\s*(\d+(?:\.\d+)?)", re.IGNORECASE)
# What makes it another number: digits that go on (4,5 or 1.2.3), a unit, a range, a second number.
_GOES_ON = re.compile(r"[.,]?\d|[\s*_\])]*(?:%|percent|±|\+|[-–—~]\s*\d|(?:to|or|and)\s+\d)|[ \t]+\d", re.IGNORECASE)
_LOW, _HIGH = 1.0, 5.0
_TRANSIENT = (429, 500, 502, 503, 504)


class UnifiedReward:
    """The mark from 1 to 5, divided by 5, as the published values are; applies to every prompt.

    ``url`` is the endpoint's base, such as http://host:17140/v1. Its key comes from the environment variable that
    ``key_variable`` names, and only from there. The published values were asked for in another wording of ``instruction``
    (flow_grpo's rewards.py has it), which names the caption as ``{prompt}``. Pictures are sent as PNG of ``image_size`` pixels,
    ``workers`` at once. An endpoint that cannot be reached, is silent for ``request_timeout`` seconds or answers 429 or 5xx is
    asked ``retries`` times more, after 0, 2, 4, ... times ``backoff`` seconds. An answer without a mark, or with two that differ, is an error, never a 0.
    """

    name = "unifiedreward"
    value_range = (_LOW / _HIGH, 1.0)
    background = True

    def __init__(
        self,
        url: str,
        model: str = "CodeGoat24/UnifiedReward-7b-v1.5",
        instruction: str = INSTRUCTION,
        key_variable: str = "OPENAI_API_KEY",
        image_size: int = 512,
        max_tokens: int = 1024,
        workers: int = 16,
        request_timeout: float = 120.0,
        retries: int = 3,
        backoff: float = 1.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise MarbleError(
                "The url of the reward 'unifiedreward' is of the form http://host:port/v1, without a name or key."
            )
        if "{prompt}" not in instruction:
            raise MarbleError("The instruction of the reward 'unifiedreward' must name the caption, as {prompt}.")
        self.url, self.model, self.instruction = url.rstrip("/") + "/chat/completions", model, instruction
        self.key_variable, self.image_size, self.max_tokens, self.workers = key_variable, image_size, max_tokens, workers
        self._http = urllib3.PoolManager(
            maxsize=workers,
            block=True,
            timeout=request_timeout,
            retries=urllib3.Retry(
                retries,
                redirect=False,
                allowed_methods=None,
                status_forcelist=_TRANSIENT,
                backoff_factor=backoff,
                raise_on_status=False,
            ),
        )

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        with ThreadPoolExecutor(self.workers) as pool:
            answers = list(pool.map(self._ask, images_NHWC, prompts))
        marks = [read_mark(answer) for answer in answers]
        unread = [i for i, mark in enumerate(marks) if mark is None]
        if unread:
            first = unread[0]
            raise MarbleError(
                f"{len(unread)} of {len(marks)} answers of {self.model!r} at {self.url} hold no one 'Final Score' from 1 to 5, "
                f"the first to the prompt {prompts[first].text!r}: {_short(answers[first])!r}."
            )
        return np.array(marks, dtype=np.float64) / _HIGH

    def self_check(self) -> None:
        check_colors(self.name, self.score)

    def _ask(self, image_HWC: np.ndarray, prompt: Prompt) -> str:
        """The text that the model answers."""
        content = [
            {"type": "image_url", "image_url": {"url": _data_url(image_HWC, self.image_size)}},
            {"type": "text", "text": self.instruction.replace("{prompt}", prompt.text)},
        ]
        body = {
            "model": self.model,
            "temperature": 0,
            "max_tokens": self.max_tokens,
            "messages": [{"role": "user", "content": content}],
        }
        key = self._key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            response = self._http.request("POST", self.url, json=body, headers={**headers, "Content-Type": "application/json"})
        except urllib3.exceptions.HTTPError as error:
            reason = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
            why = "is too slow" if isinstance(reason, urllib3.exceptions.ReadTimeoutError) else "cannot be reached"
            raise MarbleError(
                f"The endpoint {self.url} of the reward {self.name!r} {why} ({type(reason).__name__}): see that it is up."
            ) from None
        if response.status != 200:
            raise MarbleError(self._refusal(response.status, response.data.decode(errors="replace"), key))
        return self._text(response, key)

    def _key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):  # the error of a bad header would show it
            raise MarbleError(f"The environment variable {self.key_variable} holds no key, but other characters besides.")
        return key

    def _text(self, response: urllib3.BaseHTTPResponse, key: str) -> str:
        try:
            text = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            text = None
        if not isinstance(text, str):
            said = _short(response.data.decode(errors="replace"), key)
            raise MarbleError(
                f"The endpoint {self.url} of the reward {self.name!r} does not answer as OpenAI's does: {said!r}."
            )
        return text

    def _refusal(self, status: int, said: str, key: str) -> str:
        endpoint = f"The endpoint {self.url} of the reward {self.name!r}"
        if status in (401, 403):
            return f"{endpoint} refuses the key ({status}): set the environment variable {self.key_variable}."
        return f"{endpoint} answers {status}: {_short(said, key)!r}; check its url and that it serves {self.model!r}."


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
    picture = Image.fromarray(image_HWC)
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _short(text: str, key: str = "") -> str:
    """The beginning, on one line, without the key: some servers repeat it."""
    return " ".join((text.replace(key, "***") if key else text).split())[:160]
