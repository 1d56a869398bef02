"""Which prompts OCR can use, and which targets its recogniser cannot read. No torch, and rapidocr is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from marble_core.prompts.data_report import NAMED
from marble_core.prompts.metadata import short
from marble_core.rewards.ocr_alphabet import OCR_LANGUAGES, Alphabet, alphabet
from marble_core.rewards.ocr_text import as_code_points, as_read, switched, target_of
from marble_core.types import MarbleError, Options, Placed, Prompt


def can_use(prompt: Prompt, options: Options) -> bool:
    """Whether something is to be read."""
    normal = as_code_points if switched(options, "code_points") else as_read
    return bool(normal(target_of(prompt, switched(options, "any_quote"))))


def check_readable(options: Options, sets: Mapping[str, Sequence[Placed]]) -> list[str]:
    """A sentence for each set with targets that the recogniser can read in part only.

    Raises MarbleError, with file and line, for a target of which it can read no letter: its reward is 0 whatever is drawn. A target
    that comes from the quotes of any prompt is not refused, for nobody asked for it.
    """
    try:
        letters = alphabet(options)
    except MarbleError as error:
        if options.get("language") not in OCR_LANGUAGES:
            raise
        return [f"It was not checked whether the OCR targets can be read: {error}"]
    any_quote = switched(options, "any_quote")
    return [line for name, prompts in sets.items() if (line := _unread(name, prompts, letters, any_quote))]


def _unread(name: str, prompts: Sequence[Placed], letters: Alphabet, any_quote: bool) -> str | None:
    in_part = []
    for one in prompts:
        target = target_of(one.prompt, any_quote)
        if not target or not (missing := letters.missing(target)):
            continue
        if one.prompt.metadata.get("text") and not letters.spells(target):
            raise MarbleError(
                f"{one.where}: the recogniser of the reward 'ocr' can read no letter of the target {short(target)}, so it would score "
                f"0 whatever is drawn. Set the reward's option 'language' ({', '.join(OCR_LANGUAGES)}), or remove the prompt."
            )
        in_part.append(f"{one.where} ({short(target)} without {short(missing)}: {letters.best(target):.2f})")
    if not in_part:
        return None
    more = f" and {len(in_part) - NAMED} more" if len(in_part) > NAMED else ""
    return (
        f"{len(in_part)} OCR targets of {name} hold characters that the recogniser cannot read, which bounds their score: "
        f"{', '.join(in_part[:NAMED])}{more}."
    )
