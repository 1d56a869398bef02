"""Studies: the same training under several settings and seeds, held against each other on the same held-out prompts.

A study is a YAML file: ``preset``, ``set`` (overrides of all its runs), ``seeds``, and ``arms``, which map a name to the
overrides of that arm. Every run is a directory ``ARM/seed-N``; one that has its evaluation is not run again, one that was
stopped goes on from its checkpoint, so a study can be stopped and started as one likes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from marble_core.config.errors import sentence
from marble_core.config.loading import load_config
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import CONFIG, EVALUATION, HISTORY
from marble_core.config.strict_yaml import read_yaml
from marble_core.estimate import resolve_batch_sizes
from marble_core.tracking import step_history
from marble_core.types import MarbleError

if TYPE_CHECKING:
    from rich.console import Console

    from marble_core.types import Prompt, StepReport


class Study(BaseModel):
    """What a study's file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = "demo"
    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    arms: dict[Annotated[str, Field(pattern=r"^\w[\w. -]*$")], tuple[str, ...]] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path) -> Study:
        """Raises MarbleError where the file or the configuration of one of its arms is not valid."""
        try:
            study = cls.model_validate(read_yaml(path, "The study"))
        except ValidationError as error:
            raise MarbleError(sentence(error, f"the study {path}", cls)) from None
        for arm in study.arms:
            try:
                study.config(arm, study.seeds[0])
            except MarbleError as error:
                raise MarbleError(f"The study {path}, arm {arm}: {error}") from None
        return study

    def config(self, arm: str, seed: int) -> RunConfig:
        return resolve_batch_sizes(load_config(self.preset, overrides=[*self.set, *self.arms[arm], f"seed={seed}"]))


def run(study: Study, out: Path, console: Console) -> dict[str, Any]:
    """Every arm with every seed, seeds first, so that a study that is stopped early holds whole comparisons.

    Returns and writes (``study.json``) of every finished arm, by reward: the gain over the base in units of the base's std, and
    the mean alpha; one number a seed, and their mean.
    """
    from marble_core.prompts.dataset import prepare_data

    found: dict[str, Any] = {}
    held_out = prepare_data(study.config(next(iter(study.arms)), study.seeds[0])).evaluation  # the same for all
    for seed in study.seeds:
        for arm in study.arms:
            directory = out / arm / f"seed-{seed}"
            if not (directory / EVALUATION).is_file():
                console.print(f"{arm}, seed {seed}")
                config = study.config(arm, seed)
                _train_and_evaluate(config, prepare_data(config).train, held_out, directory, console)
            _add(found.setdefault(arm, {}), directory)
            (out / "study.json").write_text(
                json.dumps({"study": study.model_dump(), "arms": found}, indent=2), encoding="utf-8"
            )
    _print(found, console)
    return found


def _train_and_evaluate(
    config: RunConfig, prompts: Sequence[Prompt], held_out: Sequence[Prompt], directory: Path, console: Console
) -> None:
    from marble_core.checkpoints import CheckpointStore
    from marble_core.evaluation.run import run_evaluation
    from marble_core.training import loop

    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).write_text(config.to_json(), encoding="utf-8")  # for marble compare

    def report(done: StepReport) -> None:
        if done.step % 8 == 0 or done.notes:
            said = " ".join(
                f"{n.split('/')[1]} {v:.3f}" for n, v in done.metrics.items() if n.startswith("reward/") and n.endswith("mean")
            )
            console.print(f"  step {done.step}/{config.train.steps} {said} {'; '.join(done.notes)}", soft_wrap=True)

    learner = loop.start(config)
    loop.train(learner, prompts, CheckpointStore(directory / "checkpoints", None, "study"), report)
    learner.policy.save_adapter(directory / "adapter", learner.policy.ema)
    step_history.write_history(learner.history, directory / HISTORY)
    run_evaluation(config, held_out, directory / "adapter", directory)


def _add(arm: dict[str, Any], directory: Path) -> None:
    """One more seed of an arm."""
    from marble_core.evaluation.results import Evaluation
    from marble_core.tracking.step_history import read_history

    evaluation = Evaluation.load(directory / EVALUATION)
    history = [line["metrics"] for line in read_history(directory)]
    numbers = {"mean": evaluation.mean_gain.mean}
    numbers |= {name: r.difference.mean / r.base_std for name, r in evaluation.rewards.items() if r.base_std > 0}
    alphas = {name: [m[f"alpha/{name}"] for m in history if f"alpha/{name}" in m] for name in evaluation.rewards}
    for kind, values in (("gain", numbers), ("alpha", {n: fmean(a) for n, a in alphas.items() if a})):
        for name, value in values.items():
            entry = arm.setdefault(kind, {}).setdefault(name, {"seeds": []})
            entry["seeds"].append(value)
            entry["mean"] = fmean(entry["seeds"])


def _print(found: Mapping[str, Any], console: Console) -> None:
    from rich.table import Table

    titles = {"gain": "Gain over the base in its standard deviations: mean over seeds (least .. most)", "alpha": "Mean alpha"}
    for kind, title in titles.items():
        table = Table("reward", *found, title=title)
        for name in dict.fromkeys(n for arm in found.values() for n in arm.get(kind, {})):
            table.add_row(name, *(_cell(arm.get(kind, {}).get(name)) for arm in found.values()))
        if table.row_count:
            console.print(table)


def _cell(entry: Mapping[str, Any] | None) -> str:
    return f"{entry['mean']:+.2f} ({min(entry['seeds']):+.2f} .. {max(entry['seeds']):+.2f})" if entry else "-"
