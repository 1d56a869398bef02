"""What should not be among the prompts: repeated ones, blocked words, held-out prompts in the training set."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from marble_core.prompts.metadata import short
from marble_core.prompts.text_files import lines
from marble_core.types import MarbleError, Placed

# The words for which a prompt is not safe for work: nakedness, sex, and mutilation.
UNSAFE = (
    *("nude", "nudes", "nudity", "naked", "topless", "undressed", "bottomless", "nsfw", "porn", "porno", "pornographic"),
    *("pornography", "hentai", "erotic", "erotica", "sex", "sexy", "sexual", "sexually", "orgy", "fetish", "bdsm", "bondage"),
    *("stripper", "striptease", "lingerie", "cleavage", "boobs", "tits", "breasts", "nipple", "nipples", "genitals", "penis"),
    *("vagina", "gore", "gory", "beheaded", "decapitated", "dismembered", "mutilated", "disembowelled"),
)
Split = tuple[list[Placed], list[Placed]]  # (what stays, what goes), in order


def normal(text: str) -> str:
    """The text without its case and its white space."""
    return " ".join(text.casefold().split())


def split_repeated(prompts: Sequence[Placed]) -> Split:
    """The first of every text stays; case and white space make no difference."""
    seen: set[str] = set()

    def is_new(placed: Placed) -> bool:
        text = normal(placed.prompt.text)
        return not (text in seen or seen.add(text))  # type: ignore[func-returns-value]

    return _split(prompts, is_new)


def split_blocked(prompts: Sequence[Placed], phrases: Iterable[str]) -> Split:
    """What holds none of the words and phrases stays. They match as whole words, whatever their case and white space."""
    either = "|".join(re.escape(normal(phrase)) for phrase in phrases)
    if not either:
        return list(prompts), []
    pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)")
    return _split(prompts, lambda placed: not pattern.search(normal(placed.prompt.text)))


def read_block_list(path: str | Path, name: str | None = None) -> list[str]:
    """A word or phrase a line; a line that begins with # is a comment. Raises MarbleError where there is none."""
    phrases = [line for _, line in lines(path, name) if not line.startswith("#")]
    if not phrases:
        raise MarbleError(f"The block list {name or path} holds no word; write a word or a phrase on each line.")
    return phrases


def check_disjoint(train: Sequence[Placed], evaluation: Sequence[Placed]) -> None:
    """Raise MarbleError if a held-out prompt is also trained on; case and white space make no difference."""
    trained = {normal(placed.prompt.text): placed for placed in train}
    leaked = {text: placed for placed in evaluation if (text := normal(placed.prompt.text)) in trained}
    if leaked:
        text, held_out = next(iter(leaked.items()))
        more = f", and so are {len(leaked) - 1} more" if len(leaked) > 1 else ""
        raise MarbleError(
            f"The prompt {short(held_out.prompt.text)} is both held out ({held_out.where}) and trained on "
            f"({trained[text].where}){more}; remove it from one of the two."
        )


def _split(prompts: Sequence[Placed], stays: Callable[[Placed], bool]) -> Split:
    parts: Split = ([], [])
    for placed in prompts:
        parts[not stays(placed)].append(placed)
    return parts
