"""Questions to a vision-language model behind any OpenAI-compatible endpoint: yes or no. See docs/rewards.md, section 12. No torch."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from marble_core.rewards.chat import Chat, Value
from marble_core.rewards.endpoint import short
from marble_core.types import MarbleError, NoValue, Prompt, RewardCard

QUESTION = "Does the image show what this caption says, with nothing missing and nothing wrong? Caption: {prompt}"
_FIELD = re.compile(r"\{(\w+)\}")
_WORDS = re.compile(r"[\w'-]+")
CACHED = 100_000  # answers
TOP = 20  # tokens whose probabilities OpenAI's API gives at most

Ask = tuple[np.ndarray, str, str]  # image (H, W, C), question, the answer that is right


@dataclass(eq=False)
class Judging(Chat):
    """Questions with one right answer, each asked once for each image: answers are kept."""

    answer: Literal["probability", "text"] = "probability"

    how: ClassVar[str]

    def __post_init__(self) -> None:
        if self.answer not in ("probability", "text"):
            raise MarbleError(f"The reward {self.name!r} has no answer {self.answer!r}; choose probability or text.")
        self._kept: OrderedDict[bytes, float] = OrderedDict()
        super().__post_init__()

    def on_known_colors(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> list[Value]:
        """What it says of images and their own captions, whatever it asks otherwise."""
        asks = zip(images_NHWC, prompts, strict=True)
        return self.ask([(image, QUESTION.replace("{prompt}", prompt.text), "yes") for image, prompt in asks])

    def ask(self, asks: Sequence[Ask]) -> list[Value]:
        """How likely each answer is, in order; what was asked before, or is asked twice, goes to the endpoint once."""
        names = [self._name(*one) for one in asks]
        new = {name: one for name, one in zip(names, asks, strict=True) if name not in self._kept}
        answers = self.endpoint.ask([self._body(image, question) for image, question, _ in new.values()])
        found: dict[bytes, Value] = {name: self._kept[name] for name in names if name in self._kept}
        for (name, (_, _, right)), answer in zip(new.items(), answers, strict=True):
            found[name] = value = answer if isinstance(answer, NoValue) else self._value(answer, right)
            if not isinstance(value, NoValue):
                self._kept[name] = value
        while len(self._kept) > CACHED:
            self._kept.popitem(last=False)
        return [found[name] for name in names]

    def _name(self, image_HWC: np.ndarray, question: str, right: str) -> bytes:
        text = json.dumps([image_HWC.shape, question, right]).encode()
        return hashlib.blake2b(text + np.ascontiguousarray(image_HWC).tobytes(), digest_size=16).digest()

    def _body(self, image_HWC: np.ndarray, question: str) -> dict[str, Any]:
        first = {} if self.answer == "text" else {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP}
        return self.body(image_HWC, f"{question}\n{self.how}", **first)

    def _value(self, answer: bytes, right: str) -> Value:
        try:
            choice = json.loads(answer)["choices"][0]
            if self.answer == "text":
                return self.of_text(choice["message"]["content"], right)
            tokens = choice["logprobs"]["content"][0]["top_logprobs"]
            shares = [(str(token["token"]), math.exp(token["logprob"])) for token in tokens]
        except (ValueError, LookupError, TypeError, OverflowError):
            why = "set answer: text if it has no logprobs" if self.answer == "probability" else "see what it serves"
            said = short(answer.decode(errors="replace"), self.key())
            return NoValue(f"it does not answer as OpenAI's does ({why}): {said!r}")
        return self.of_tokens(shares, right)

    def of_text(self, text: str, right: str) -> Value:
        """Of an answer in words."""
        raise NotImplementedError

    def of_tokens(self, shares: Sequence[tuple[str, float]], right: str) -> Value:
        """``shares`` are the first token's, with their probabilities."""
        raise NotImplementedError


@dataclass(eq=False)
class Judge(Judging):
    """How likely the model answers yes to ``question``, in [0, 1]; applies to prompts that have what the question names.

    ``question`` names the caption as ``{prompt}``, and metadata by their keys: "Is this what {reference} says?". ``answer:
    probability`` is P(yes) / (P(yes) + P(no)) of the answer's first token, which the endpoint must give (``logprobs``); ``text`` is
    1 where the answer begins with yes, 0 where with no. An answer that is neither is no value, never a 0. The other options are those of
    ``Chat``.
    """

    name = "judge"
    value_range = (0.0, 1.0)
    how = "Answer yes or no."
    card = RewardCard(
        applies=lambda prompt, options: _has_fields(prompt, str(options.get("question", QUESTION))),
        says="How likely a vision-language model answers yes to a question on the image, 0 to 1; it is served elsewhere (option url).",
    )

    question: str = QUESTION

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings: Mapping[str, Any] = {"model": self.model, "question": self.question, "answer": self.answer}

    def applies(self, prompt: Prompt) -> bool:
        return _has_fields(prompt, self.question)

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> list[Value]:
        return self.ask([(image, self.asked(prompt), "yes") for image, prompt in zip(images_NHWC, prompts, strict=True)])

    def asked(self, prompt: Prompt) -> str:
        """The question about an image of this prompt."""
        fields = {**prompt.metadata, "prompt": prompt.text}
        return _FIELD.sub(lambda found: str(fields.get(found[1], found[0])), self.question)

    def of_text(self, text: str, right: str) -> Value:
        first = next(iter(_WORDS.findall(text.casefold())), "")
        return float(first == right) if first in ("yes", "no") else NoValue(f"it answers neither yes nor no: {short(text)!r}")

    def of_tokens(self, shares: Sequence[tuple[str, float]], right: str) -> Value:
        """``shares`` are the first token's, with their probabilities."""
        of = {word: sum(share for token, share in shares if token.strip().casefold() == word) for word in ("yes", "no")}
        both = of["yes"] + of["no"]
        return of[right] / both if both else NoValue(f"neither yes nor no is among its first {len(shares)} tokens")


def _has_fields(prompt: Prompt, question: str) -> bool:
    return all(field == "prompt" or field in prompt.metadata for field in _FIELD.findall(question))
