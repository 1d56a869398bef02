"""Lists of questions on each prompt, put to a judge: GenEval 2's and DPG-Bench's. See docs/rewards.md, section 12. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from marble_core.rewards.chat import Value
from marble_core.rewards.endpoint import short
from marble_core.rewards.judge import Judging
from marble_core.types import MarbleError, NoValue, Options, Placed, Prompt, RewardCard

_WORDS = re.compile(r"[\w'-]+")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
LEAST = 1e-6  # of a probability, so that a geometric mean of one 0 tells images apart


@dataclass(frozen=True)
class Question:
    """One question, the answer that is right, and the ids of those that must be answered yes before it counts."""

    id: int
    text: str
    answer: str
    needs: tuple[int, ...] = ()


def _has_list(prompt: Prompt) -> bool:
    return bool(prompt.metadata.get("vqa_list") or prompt.metadata.get("questions"))


def _check(options: Options, sets: Mapping[str, Sequence[Placed]]) -> list[str]:
    for placed in (one for prompts in sets.values() for one in prompts if _has_list(one.prompt)):
        try:
            questions_of(placed.prompt)
        except MarbleError as error:
            raise MarbleError(f"{placed.where}: {error}") from None
    return []


@dataclass(eq=False)
class Questions(Judging):
    """The mean over a prompt's questions, in [0, 1], beside it the other mean; applies to prompts whose metadata have a list.

    The metadata ``vqa_list`` is GenEval 2's: [question, right answer] each; ``questions`` is DPG-Bench's, as one list a prompt:
    {"question", "id", "dependency": [ids]}, whose right answer is yes. A question counts 0 where one that it depends on is not
    answered yes (below .5); the id 0 is none. ``mean`` is ``geometric`` (a prompt is right as a whole; GenEval 2's default) or
    ``arithmetic`` (DPG-Bench's). An answer's value is its probability (``answer: probability``, Soft-TIFA), among the endpoint's
    first tokens and not held against another's, or 1 or 0 (``text``). A prompt with an unanswered question has no value.
    The other options are Chat's.
    """

    name = "questions"
    value_range = (0.0, 1.0)
    how = "Answer with one word."
    card = RewardCard(
        applies=lambda prompt, options: _has_list(prompt),
        check=_check,
        says="The share of a prompt's list of questions that a served vision-language model answers right, 0 to 1.",
    )

    mean: Literal["geometric", "arithmetic"] = "geometric"

    def __post_init__(self) -> None:
        if self.mean not in ("geometric", "arithmetic"):
            raise MarbleError(f"The reward 'questions' has no mean {self.mean!r}; choose geometric or arithmetic.")
        super().__post_init__()
        self.side = ("arithmetic",) if self.mean == "geometric" else ("geometric",)
        self.settings = {"model": self.model, "mean": self.mean, "answer": self.answer}

    def applies(self, prompt: Prompt) -> bool:
        return _has_list(prompt)

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> list[Any]:
        """[reward, the other mean] of each image, or why it has none."""
        lists = [questions_of(prompt) for prompt in prompts]
        asks = [(image, q.text, q.answer) for image, own in zip(images_NHWC, lists, strict=True) for q in own]
        values = self.ask(asks)
        ends = np.cumsum([0, *map(len, lists)])
        return [self._of(own, values[a:b]) for own, (a, b) in zip(lists, pairwise(ends), strict=True)]

    def _of(self, questions: Sequence[Question], values: Sequence[Value]) -> list[float] | NoValue:
        found: dict[int, float] = {}
        for question, value in zip(questions, values, strict=True):
            if isinstance(value, NoValue):
                return NoValue(f"{question.text!r}: {value.why}")
            found[question.id] = value
        counted = [found[q.id] if all(found[i] >= 0.5 for i in q.needs) else 0.0 for q in questions]
        means = {
            "arithmetic": sum(counted) / len(counted),
            "geometric": math.exp(sum(math.log(max(value, LEAST)) for value in counted) / len(counted)),
        }
        return [means[self.mean], means[self.side[0]]]

    def of_text(self, text: str, right: str) -> Value:
        words = _WORDS.findall(text.casefold())
        return float(words[0] in same(right)) if words else NoValue(f"it answers nothing: {short(text)!r}")

    def of_tokens(self, shares: Sequence[tuple[str, float]], right: str) -> Value:
        """The probability of the right answer; 0 where it is not among the first tokens."""
        return min(1.0, sum(share for token, share in shares if token.strip().casefold() in same(right)))


def questions_of(prompt: Prompt) -> list[Question]:
    """The prompt's list. Raises MarbleError for one of another form."""
    try:
        if pairs := prompt.metadata.get("vqa_list"):
            return [Question(i, _text(text), _text(answer)) for i, (text, answer) in enumerate(pairs, 1)]
        found = [
            Question(int(q["id"]), _text(q["question"]), "yes", tuple(int(i) for i in q.get("dependency", ()) if int(i)))
            for q in prompt.metadata["questions"]
        ]
    except (TypeError, ValueError, KeyError, AttributeError):
        raise MarbleError(
            f"The questions on the prompt {prompt.text!r} must be 'vqa_list': [[question, answer], ...] or 'questions': "
            '[{"id": 1, "question": "...", "dependency": [0]}, ...].'
        ) from None
    ids = [q.id for q in found]
    if len(set(ids)) < len(ids) or any(i not in ids for q in found for i in q.needs):
        raise MarbleError(f"The questions on the prompt {prompt.text!r} have an id twice, or depend on one that is not there.")
    return found


def same(answer: str) -> frozenset[str]:
    """An answer in the forms that count: numbers up to ten as a word and in digits."""
    word = answer.strip().casefold()
    number = _NUMBERS.index(word) if word in _NUMBERS else int(word) if word.isdecimal() else None
    return frozenset({word} if number is None or number >= len(_NUMBERS) else {_NUMBERS[number], str(number)})


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError
    return value.strip()
