"""UnifiedReward: a vision-language model marks each image, behind an OpenAI-compatible endpoint. See docs/rewards.md, section 7.

For evaluation: an image costs a generation of an 8 B model. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from marble_core.rewards.chat import Chat, Value
from marble_core.rewards.endpoint import short
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


@dataclass(eq=False)
class UnifiedReward(Chat):
    """The mark from 1 to 5, divided by 5, as the published values are; applies to every prompt.

    The published values were asked for in another wording of ``instruction`` (flow_grpo's rewards.py has it), which names the caption as
    ``{prompt}``. An answer without a mark, or with two that differ, is no value, never a 0. The other options are those of ``Chat``.
    """

    name = "unifiedreward"
    value_range = (_LOW / _HIGH, 1.0)
    card = RewardCard(
        says="A vision-language model's mark from 1 to 5, divided by 5; it is served elsewhere (option url)."
    )  # its 8 B weights are served elsewhere

    model: str = "CodeGoat24/UnifiedReward-7b-v1.5"
    max_tokens: int = 1024
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        if "{prompt}" not in self.instruction:
            raise MarbleError("The instruction of the reward 'unifiedreward' must name the caption, as {prompt}.")
        super().__post_init__()

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> list[Value]:
        bodies = [
            self.body(image, self.instruction.replace("{prompt}", prompt.text))
            for image, prompt in zip(images_NHWC, prompts, strict=True)
        ]
        return [answer if isinstance(answer, NoValue) else self._mark(answer) for answer in self.endpoint.ask(bodies)]

    on_known_colors = score

    def _mark(self, answer: bytes) -> float | NoValue:
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            text = None
        if not isinstance(text, str):
            return NoValue(f"it does not answer as OpenAI's does: {short(answer.decode(errors='replace'), self.key())!r}")
        mark = read_mark(text)
        return NoValue(f"the answer holds no one 'Final Score' from 1 to 5: {short(text)!r}") if mark is None else mark / _HIGH


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
