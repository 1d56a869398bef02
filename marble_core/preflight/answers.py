"""The table of what was asked and what was answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from marble_core.types import MarbleError


@dataclass(frozen=True)
class Answer:
    """``answer`` is "yes", or a sentence. ``state``: "yes", "note" where the run goes on without it, "no" where it cannot."""

    asked: str
    answer: str = "yes"
    state: str = "yes"


def ask(asked: str, question: Callable[[], str | None]) -> Answer:
    """The answer to a question that raises MarbleError where it is no, and returns a note where it is yes, but."""
    try:
        note = question()
    except MarbleError as error:
        return Answer(asked, str(error), "no")
    return Answer(asked, note, "note") if note else Answer(asked)


def column_of(answers: Sequence[Answer]) -> int:
    """Where the answers begin in ``lines``, in characters."""
    return max((len(each.asked) for each in answers), default=0) + 2


def lines(answers: Sequence[Answer]) -> list[str]:
    """For a terminal, one line each."""
    width = column_of(answers)
    return [f"{each.asked:<{width}}{each.answer}" for each in answers]


def as_markdown(answers: Sequence[Answer]) -> str:
    cells = [(each.asked, each.answer.replace("|", "\\|")) for each in answers]
    return "\n".join(["| asked | answer |", "|---|---|", *(f"| {asked} | {answer} |" for asked, answer in cells)])


def require(answers: Sequence[Answer]) -> None:
    """Raises MarbleError with the first answer that is no."""
    for each in answers:
        if each.state == "no":
            raise MarbleError(each.answer)
