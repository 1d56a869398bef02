"""Images with a known answer, on which a scorer checks itself when it loads. No torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from marble_core.types import MarbleError, Prompt


def known_image(color: str, side: int = 64) -> np.ndarray:
    """A square of that colour on white, (side, side, C) uint8."""
    from PIL import Image

    picture = Image.new("RGB", (side, side), "white")
    picture.paste(color, (side // 4, side // 4, side - side // 4, side - side // 4))
    return np.asarray(picture)


def check_colors(name: str, score: Callable[[np.ndarray, list[Prompt]], np.ndarray]) -> None:
    """Raise MarbleError unless images of a red and of a blue square each score higher with their own prompt.

    ``name`` is the reward's, ``score`` takes images_NHWC and N prompts, as a scorer's does.
    """
    colors = ("red", "blue")
    pairs = [(picture, prompt) for picture in colors for prompt in colors]
    images_NHWC = np.stack([known_image(picture) for picture, _ in pairs])
    values = score(images_NHWC, [Prompt(f"a {prompt} square", "general") for _, prompt in pairs])
    own_red, false_red, false_blue, own_blue = values
    if not (own_red > false_red and own_blue > false_blue):
        raise MarbleError(
            f"The reward {name!r} cannot tell a red square from a blue one ({own_red:.3f} against {false_red:.3f}, "
            f"{own_blue:.3f} against {false_blue:.3f}): check its checkpoint."
        )
