"""One cell of a study, an arm trained with one seed, as its JSON file holds it. No torch: the page and the table read it.

Nothing in it depends on how often the work was stopped, on what else ran, or on the clock, so that a cell that was killed and one
that was not are the same file to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from marble_core.config.formats import CELL
from marble_core.evaluation.results import Alarm, Diversity, Estimate, Variant
from marble_core.types import MarbleError, Prompt

Column = tuple[float | None, ...]  # a number for each prompt or step, None where there is none
Scores = Mapping[str, Column]  # of each prompt, by reward


@dataclass(frozen=True)
class CellEvaluation:
    """The model after so many steps. ``gains`` are paired differences to the base in its standard deviations, with the interval
    over prompts; a reward in which the base has no spread is left out. ``trained`` has the scores of each prompt, ``weights_sha256``
    names the adapter's weights. Of the trained model's further roles (``evaluation.roles``) ``roles`` has the scores; ``distances``
    has what diversity rests on, of ``trained`` and of these roles.
    """

    gains: Mapping[str, Estimate]
    mean_gain: Estimate
    alarms: tuple[Alarm, ...]
    diversity: Diversity | None
    weights_sha256: str
    trained: Scores
    variants: tuple[Variant, ...] = ()
    roles: Mapping[str, Scores] = field(default_factory=dict)
    distances: Mapping[str, Column] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """``measuring`` is what two cells must share for their numbers to be held against each other. ``sources`` and ``texts`` say of
    each held-out prompt its source and the index of the first prompt with its text; ``base`` and ``trained`` its scores, rounded
    to at most a thousandth of the base's standard deviation. ``history`` has metrics by step of ``steps``. ``free_roles`` are the
    scores of the base under guidance; ``watched`` has the alarms of each look while it trained, by step. ``varied`` says which of the prompts diversity is measured on, and ``distances`` has the mean
    distances of these prompts' images, of ``base`` and the free roles.
    """

    arm: str
    seed: int
    commit: str
    versions: Mapping[str, str]
    config: str
    rewards: tuple[str, ...]
    held_out: tuple[str, ...]
    measuring: Mapping[str, Any]
    sources: tuple[str, ...]
    texts: tuple[int, ...]
    base: Scores
    evaluations: Mapping[int, CellEvaluation]
    steps: tuple[int, ...]
    history: Mapping[str, Column]
    free_roles: Mapping[str, Scores] = field(default_factory=dict)
    varied: tuple[int, ...] = ()
    distances: Mapping[str, Column] = field(default_factory=dict)
    watched: Mapping[int, tuple[Alarm, ...]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(CELL.stamp_json(_FORMAT.dump_json(self)) + "\n", encoding="utf-8")
        os.replace(draft, path)

    @classmethod
    def load(cls, path: Path) -> Cell:
        """Raises MarbleError if the file cannot be read or is no cell."""
        try:
            return _FORMAT.validate_json(CELL.upgrade_json(path.read_bytes(), path))
        except OSError as error:
            raise MarbleError(f"The cell {path} cannot be read: {error.strerror}.") from None
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"])) or "the file"
            raise MarbleError(
                f"{path} is no cell of a study ({at}: {first['msg']}): remove it to have it made again."
            ) from None

    @property
    def prompts(self) -> list[Prompt]:
        """Stand-ins for the held-out prompts, equal where their texts are: what a bootstrap resamples."""
        return [Prompt(str(text), source) for source, text in zip(self.sources, self.texts, strict=True)]


_FORMAT = TypeAdapter(Cell)


def as_column(values: Sequence[float], digits: int | None = None) -> Column:
    """NaN becomes None; rounded to so many decimals, or without ``digits`` to five significant figures."""
    write = (lambda v: float(f"{v:.5g}")) if digits is None else (lambda v: round(float(v), digits))
    return tuple(write(v) if np.isfinite(v) else None for v in values)


def as_array(column: Column) -> np.ndarray:
    """The inverse: NaN where there is none."""
    return np.array([np.nan if value is None else value for value in column])
