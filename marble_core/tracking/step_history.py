"""A training by step, as history.jsonl tells it: written by train, read by report and stages. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from marble_core.config.stage_files import HISTORY


def as_lines(history: Sequence[Mapping[str, Any]]) -> str:
    """One JSON line a step: step, metrics, notes."""
    return "".join(json.dumps(line) + "\n" for line in history)


def write_history(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    path.write_text(as_lines(history), encoding="utf-8")


def read_history(directory: Path) -> list[dict[str, Any]]:
    """Every line of a whole file, as it lies beside an adapter. Raises ValueError for one that is not JSON."""
    return [json.loads(line) for line in (directory / HISTORY).read_text(encoding="utf-8").splitlines()]


_POINTS = 400  # of a curve; longer histories are drawn by the means of blocks of steps


@dataclass(frozen=True)
class History:
    """Training by step: ``steps`` without holes, and each metric at every one of them, NaN where a step does not have it."""

    steps: np.ndarray
    metrics: Mapping[str, np.ndarray]
    notes: tuple[tuple[int, str], ...] = ()
    skipped: tuple[int, ...] = ()

    @classmethod
    def load(cls, path: Path | None) -> History:
        """Read train's JSON lines; of a step that was trained twice (a resumed run) the later line counts.

        A file that is not there is an empty history, and a last line that a killed run left unfinished is dropped.
        """
        lines = _by_step(path)
        if not lines:
            return cls(np.arange(0), {})
        first = min(lines)
        steps = np.arange(first, max(lines) + 1)
        names = dict.fromkeys(name for row in lines.values() for name in row["metrics"])
        metrics = {name: np.full(len(steps), np.nan) for name in names}
        for step, row in lines.items():
            for name, value in row["metrics"].items():
                metrics[name][step - first] = np.nan if value is None or not np.isfinite(value) else value
        notes = tuple((step, note) for step, row in sorted(lines.items()) for note in row.get("notes", ()))
        skipped = tuple(int(s) for s in steps if s not in lines or lines[int(s)]["metrics"].get("skipped"))
        return cls(steps, metrics, notes, skipped)

    def get(self, name: str) -> np.ndarray | None:
        """A metric that at least one step has."""
        values = self.metrics.get(name)
        return None if values is None or np.isnan(values).all() else values

    def mean(self, name: str) -> float | None:
        """Over the steps that have the metric."""
        values = self.get(name)
        return None if values is None else float(np.nanmean(values))

    def cosine(self, a: str, b: str) -> float | None:
        """Mean cosine between the gradients of two rewards, over the steps in which both had one."""
        return next((c for name in (f"cosine/{a}:{b}", f"cosine/{b}:{a}") if (c := self.mean(name)) is not None), None)

    def most_opposed(self, names: Sequence[str]) -> tuple[str, str] | None:
        """The two rewards whose gradients agree least, which is where one is traded for the other; None where none are known."""
        known = {pair: c for pair in combinations(names, 2) if (c := self.cosine(*pair)) is not None}
        return min(known, key=lambda pair: known[pair], default=None)

    def thinned(self, points: int = _POINTS) -> History:
        """At most ``points`` block means, each at the last step of its block; a block without a value is a gap."""
        width = -(-len(self.steps) // points)
        if width <= 1:
            return self
        pad = -len(self.steps) % width
        blocks = {n: np.pad(v, (pad, 0), constant_values=np.nan).reshape(-1, width) for n, v in self.metrics.items()}
        counts = {n: (~np.isnan(b)).sum(1) for n, b in blocks.items()}
        means = {n: np.where(counts[n] > 0, np.nansum(b, 1) / np.maximum(counts[n], 1), np.nan) for n, b in blocks.items()}
        return History(self.steps[width - 1 - pad :: width], means, self.notes, self.skipped)


def trained_steps(adapter: Path) -> int:
    """The last step of the history that train left beside its adapter; 0 where there is none."""
    return max(_by_step(adapter / HISTORY), default=0)


def _by_step(path: Path | None) -> dict[int, Mapping[str, Any]]:
    """The file's rows; of a step that was trained twice the later one, without a last line that was left unfinished."""
    rows: dict[int, Mapping[str, Any]] = {}
    text = path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            rows[int(row["step"])] = row
    return rows
