"""What rewards share that ask a vision-language model behind an OpenAI-compatible endpoint. See docs/rewards.md, section 12. No torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import AfterValidator

from marble_core.rewards.endpoint import PATIENCE, Endpoint, api_key, may_be_sent
from marble_core.rewards.self_check import check_colors
from marble_core.types import MarbleError, NoValue, Prompt

Value = float | NoValue


@dataclass(eq=False)
class Chat:
    """``url`` is the endpoint's base, such as http://host:8000/v1; its key comes from the environment variable ``key_variable`` and only
    from there. Images are sent as PNG of ``image_size`` pixels, ``workers`` at once. An endpoint that cannot be reached, is silent for
    ``request_timeout`` seconds, or is busy (429, 5xx) is asked again, after ``backoff``, 2, 4, ... times as many seconds, for
    ``patience`` seconds an image in all; then the image has no value.
    """

    url: str
    model: str
    key_variable: Annotated[str, AfterValidator(may_be_sent)] = "OPENAI_API_KEY"
    image_size: int = 512
    max_tokens: int = 8
    workers: int = 16
    patience: float = PATIENCE
    request_timeout: float = 120.0
    backoff: float = 1.0

    name: ClassVar[str]
    background: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.endpoint = Endpoint(
            self.url.rstrip("/") + "/chat/completions",
            f"the reward {self.name!r}",
            f"set the environment variable {may_be_sent(self.key_variable)}",
            self.key,
            self.patience,
            self.request_timeout,
            self.backoff,
            self.workers,
        )

    def on_known_colors(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> Sequence[Value]:
        """Of images of known colours; NoValue is an error there."""
        raise NotImplementedError

    def self_check(self) -> None:
        def score(images_NHWC: np.ndarray, prompts: list[Prompt]) -> np.ndarray:
            values = self.on_known_colors(images_NHWC, prompts)
            for value in values:
                if isinstance(value, NoValue):
                    raise MarbleError(f"{self.endpoint.what} has no answer on an image of known colour: {value.why}.")
            return np.array(values)

        check_colors(self.name, score)

    def body(self, image_HWC: np.ndarray, text: str, **how: Any) -> dict[str, Any]:
        """A request about one image; ``how`` are further keys."""
        content = [
            {"type": "image_url", "image_url": {"url": _data_url(image_HWC, self.image_size)}},
            {"type": "text", "text": text},
        ]
        messages = [{"role": "user", "content": content}]
        return {"model": self.model, "temperature": 0, "max_tokens": self.max_tokens, "messages": messages, **how}

    def key(self) -> str:
        return api_key(self.key_variable)


def _data_url(image_HWC: np.ndarray, size: int) -> str:
    from PIL import Image

    image = Image.fromarray(image_HWC)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
