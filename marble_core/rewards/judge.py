"""Questions to a vision-language model behind any OpenAI-compatible endpoint: yes or no. See docs/rewards.md, section 12. No torch."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from marble_core.rewards.endpoint import PATIENCE, Endpoint, api_key, may_be_sent, short
from marble_core.rewards.self_check import check_colors
from marble_core.types import MarbleError, NoValue, Prompt, RewardCard

QUESTION = "Does the image show what this caption says, with nothing missing and nothing wrong? Caption: {prompt}"
_FIELD = re.compile(r"\{(\w+)\}")
_WORDS = re.compile(r"[\w'-]+")
CACHED = 100_000  # answers
TOP = 20  # tokens whose probabilities OpenAI's API gives at most

Ask = tuple[np.ndarray, str, str]  # image (H, W, C), question, the answer that is right
Value = float | NoValue


class Judge:
    """How likely the model answers yes to ``question``, in [0, 1]; applies to prompts that have what the question names.

    ``question`` names the caption as ``{prompt}``, and metadata by their keys: "Is this what {reference} says?". ``answer:
    probability`` is P(yes) / (P(yes) + P(no)) of the answer's first token, which the endpoint must give (``logprobs``); ``text`` is
    1 where the answer begins with yes, 0 where with no. An answer that is neither is no value, never a 0. ``url`` is the
    endpoint's base, such as http://host:8000/v1; its key comes from the environment variable ``key_variable`` and only from there.
    Pictures are sent as PNG of ``image_size`` pixels, ``workers`` at once, each with its question once: answers are kept.
    """

    name = "judge"
    value_range = (0.0, 1.0)
    background = True
    card = RewardCard(applies=lambda prompt, options: _has_fields(prompt, str(options.get("question", QUESTION))))

    def __init__(
        self,
        url: str,
        model: str,
        question: str = QUESTION,
        answer: Literal["probability", "text"] = "probability",
        key_variable: str = "OPENAI_API_KEY",
        image_size: int = 512,
        max_tokens: int = 8,
        workers: int = 16,
        patience: float = PATIENCE,
        request_timeout: float = 120.0,
        backoff: float = 1.0,
    ) -> None:
        if answer not in ("probability", "text"):
            raise MarbleError(f"The reward {self.name!r} has no answer {answer!r}; choose probability or text.")
        self.model, self.question, self.answer = model, question, answer
        self.key_variable, self.image_size, self.max_tokens = may_be_sent(key_variable), image_size, max_tokens
        self.settings: Mapping[str, Any] = {"model": model, "question": question, "answer": answer}
        self._kept: OrderedDict[bytes, float] = OrderedDict()
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
        return _has_fields(prompt, self.question)

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> list[Value]:
        return self.ask([(image, self.asked(prompt), "yes") for image, prompt in zip(images_NHWC, prompts, strict=True)])

    def self_check(self) -> None:
        def score(images_NHWC: np.ndarray, prompts: list[Prompt]) -> np.ndarray:
            asks = [(image, QUESTION.replace("{prompt}", p.text), "yes") for image, p in zip(images_NHWC, prompts, strict=True)]
            values = self.ask(asks)
            for value in values:
                if isinstance(value, NoValue):
                    raise MarbleError(f"{self.endpoint.what} has no answer on a picture of known colour: {value.why}.")
            return np.array(values)

        check_colors(self.name, score)

    def asked(self, prompt: Prompt) -> str:
        """The question about an image of this prompt."""
        fields = {**prompt.metadata, "prompt": prompt.text}
        return _FIELD.sub(lambda found: str(fields.get(found[1], found[0])), self.question)

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
        content = [
            {"type": "image_url", "image_url": {"url": _data_url(image_HWC, self.image_size)}},
            {"type": "text", "text": f"{question}\n{self._how}"},
        ]
        body = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": content}]}
        if self.answer == "text":
            return body | {"max_tokens": self.max_tokens}
        return body | {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP}

    _how = "Answer yes or no."

    def _value(self, answer: bytes, right: str) -> Value:
        try:
            choice = json.loads(answer)["choices"][0]
            if self.answer == "text":
                return self.of_text(choice["message"]["content"], right)
            tokens = choice["logprobs"]["content"][0]["top_logprobs"]
            shares = [(str(token["token"]), math.exp(token["logprob"])) for token in tokens]
        except (ValueError, LookupError, TypeError, OverflowError):
            why = "set answer: text if it has no logprobs" if self.answer == "probability" else "see what it serves"
            said = short(answer.decode(errors="replace"), self._key())
            return NoValue(f"it does not answer as OpenAI's does ({why}): {said!r}")
        return self.of_tokens(shares, right)

    def of_text(self, text: str, right: str) -> Value:
        first = next(iter(_WORDS.findall(text.casefold())), "")
        return float(first == right) if first in ("yes", "no") else NoValue(f"it answers neither yes nor no: {short(text)!r}")

    def of_tokens(self, shares: Sequence[tuple[str, float]], right: str) -> Value:
        """``shares`` are the first token's, with their probabilities."""
        of = {word: sum(share for token, share in shares if token.strip().casefold() == word) for word in ("yes", "no")}
        both = of["yes"] + of["no"]
        return of[right] / both if both else NoValue(f"neither yes nor no is among its first {len(shares)} tokens")

    def _key(self) -> str:
        return api_key(self.key_variable)


def _has_fields(prompt: Prompt, question: str) -> bool:
    return all(field == "prompt" or field in prompt.metadata for field in _FIELD.findall(question))


def _data_url(image_HWC: np.ndarray, size: int) -> str:
    from PIL import Image

    picture = Image.fromarray(image_HWC)
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
