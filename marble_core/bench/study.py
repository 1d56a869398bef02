"""Studies: the same training under several settings and seeds, held against each other on the same held-out prompts.

A study is a YAML file (docs/study.md). Each finished cell, an arm with a seed, is one file ``cells/ARM/seed-N.json``; a study that
is killed and started again makes what is missing, and a cell that was begun goes on from its checkpoint. ``python -m`` of this
module makes one cell, in a process of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from marble_core.bench import study_checkout
from marble_core.config.errors import sentence
from marble_core.config.loading import load_config
from marble_core.config.schema import RunConfig
from marble_core.config.strict_yaml import read_yaml
from marble_core.estimate import resolve_batch_sizes
from marble_core.evaluation.cell import Cell
from marble_core.rewards.cards import cards_of
from marble_core.types import MarbleError

if TYPE_CHECKING:
    from rich.console import Console

SNAPSHOT = "study.yaml"  # what the study's file said when it was last started: its cells read this one


class Study(BaseModel):
    """What a study's file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = "demo"
    set: tuple[str, ...] = ()
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    evaluate_at: tuple[Annotated[int, Field(ge=1)], ...] = ()  # steps; none: the last alone
    arms: dict[Annotated[str, Field(pattern=r"^\w[\w. -]*$")], tuple[str, ...]] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path) -> Study:
        """Raises MarbleError where the file or the configuration of one of its arms is not valid."""
        return cls.of(read_yaml(path, "The study"), str(path))

    @classmethod
    def of(cls, tree: Any, name: str) -> Study:
        """What a file holds, or a pipeline was told; ``name`` is for the errors."""
        try:
            study = cls.model_validate(tree)
        except ValidationError as error:
            raise MarbleError(sentence(error, f"the study {name}", cls)) from None
        for arm in study.arms:
            try:
                config = study.config(arm, study.seeds[0])
                steps = config.train.steps
            except MarbleError as error:
                raise MarbleError(f"The study {name}, arm {arm}: {error}") from None
            if config.train.keep_best or config.watch.on_alarm == "stop":
                raise MarbleError(
                    f"The study {name}, arm {arm}: leave out train.keep_best and watch.on_alarm=stop, which end a run before the step that "
                    "its arms are compared at. Each cell's watch.jsonl has what they would have done."
                )
            if study.evaluate_at and max(study.evaluate_at) != steps:
                raise MarbleError(
                    f"The study {name}, arm {arm}: the last step of evaluate_at is {max(study.evaluate_at)}, but train.steps is "
                    f"{steps}: make them the same."
                )
        return study

    @property
    def cells(self) -> list[tuple[str, int]]:
        """Seeds first, so that a study that is stopped early holds whole comparisons."""
        return [(arm, seed) for seed in dict.fromkeys(self.seeds) for arm in self.arms]

    def config(self, arm: str, seed: int) -> RunConfig:
        config = load_config(self.preset, overrides=[*self.set, *self.arms[arm], f"seed={seed}"])
        return resolve_batch_sizes(config, cards_of(config.measured))

    def made(self, cell: Cell) -> bool:
        """Whether the cell is what the study would make with the settings that it has now."""
        same = cell.config == self.config(cell.arm, cell.seed).digest
        return same and tuple(cell.evaluations) == self.evaluated_at(cell.arm)

    def evaluated_at(self, arm: str) -> tuple[int, ...]:
        return tuple(sorted(set(self.evaluate_at))) or (self.config(arm, self.seeds[0]).train.steps,)


def cell_path(out: Path, arm: str, seed: int) -> Path:
    return out / "cells" / arm / f"seed-{seed}.json"


def run_directory(out: Path, arm: str, seed: int) -> Path:
    return out / "runs" / arm / f"seed-{seed}"


def finished(study: Study, out: Path) -> dict[tuple[str, int], Cell]:
    """The cells that are there. Raises MarbleError for one that was made with other settings than the study has now."""
    found = {}
    for arm, seed in study.cells:
        if (path := cell_path(out, arm, seed)).is_file():
            cell = found[arm, seed] = Cell.load(path)
            if not study.made(cell):
                raise MarbleError(
                    f"The cell {path} was made with other settings than the study has now. Put them back, give another directory "
                    "with --out, or remove that file to have it made again."
                )
    return found


def run(file: Path, out: Path, jobs: int, console: Console) -> None:
    """Make every cell that is missing, ``jobs`` at a time (0: two where there are two cores and no GPU), with tables and a page.

    Raises MarbleError where a cell failed, after all others are done.
    """
    with begun(file, out, console, ["--jobs", str(jobs)]) as (study, lock, environment):
        from marble_core.bench.study_processes import Runner

        done = finished(study, out)
        (out / SNAPSHOT).write_bytes(file.read_bytes())
        Runner(study, out, jobs or default_jobs(study), console, lock, environment, done).run()


@contextmanager
def begun(file: Path, out: Path, console: Console, options: Sequence[str]) -> Iterator[tuple[Study, int, dict[str, str]]]:
    """The study, the descriptor of its lock, which no other process has until the end of the block, and its processes' environment.

    A study runs from the commit that it was begun with: this process is replaced by ``marble study`` with these options, which
    runs from ``out/checkout``, where it does not already.
    """
    study = Study.read(file)
    out.mkdir(parents=True, exist_ok=True)
    from marble_core.bench.study_processes import owned

    with owned(out) as lock:
        commit, code = study_checkout.begun_with(out)
        environment = study_checkout.environment(code, commit)
        if not study_checkout.is_running(code):
            console.print(f"The study runs from the commit {commit[:12]}, in {code}", soft_wrap=True)
            command = [sys.executable, "-P", "-m", "marble_core.cli", "study", str(file), "--out", str(out), *options]
            os.execve(sys.executable, command, environment)
        yield study, lock, environment


def default_jobs(study: Study) -> int:
    """Two processes on two cores; one where the runs are meant for a GPU."""
    gpus = any(study.config(arm, study.seeds[0]).hardware.gpus for arm in study.arms)
    return 1 if gpus else min(2, len(os.sched_getaffinity(0)))


def make_cell(out: Path, arm: str, seed: int) -> None:
    """What the process of one cell does."""
    from marble_core.runtime import progress

    with progress.stage("study cell"):
        cell_of(Study.read(out / SNAPSHOT), out, arm, seed).save(cell_path(out, arm, seed))


def cell_of(study: Study, out: Path, arm: str, seed: int) -> Cell:
    """One cell, trained and evaluated in this process; what of it lies in ``out`` is not done again."""
    import torch

    from marble_core.prompts.dataset import prepare_data
    from marble_core.training.study_cell import run_cell

    torch.set_num_threads(1)  # the same sums in the same order, however many cells run
    config = study.config(arm, seed)
    first = prepare_data(study.config(next(iter(study.arms)), study.seeds[0]))
    judged_by, watched = first.evaluation, first.watched  # the same for all cells
    texts = {prompt.text for prompt in judged_by}
    prompts = [prompt for prompt in prepare_data(config).train if prompt.text not in texts]
    steps = study.evaluated_at(arm)
    return run_cell(config, arm, prompts, judged_by, run_directory(out, arm, seed), steps, out / "roles", watched)


def main(arguments: Sequence[str]) -> None:
    out, arm, seed = arguments
    try:
        make_cell(Path(out), arm, int(seed))
    except MarbleError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
