"""One cell of a study: a configuration trained once, and evaluated after several of its steps. Goes on where it was stopped.

In the cell's directory lie ``checkpoints/``, and for each step that is evaluated ``step-N/`` with the adapter, its history, the
configuration, evaluation.json and images: a finished run as ``marble compare`` reads it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from marble_core.algorithm.learner import Learner
from marble_core.checkpoints import CheckpointStore
from marble_core.checkpoints.manifest import is_name, step_of
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import ADAPTER_FILE, CONFIG, EVALUATION, HISTORY, IMAGES, SCORES, WATCH
from marble_core.evaluation.cell import Cell, CellEvaluation, Column, as_column
from marble_core.evaluation.results import Estimate, Evaluation, RewardResult
from marble_core.evaluation.run import run_evaluation
from marble_core.evaluation.shared_roles import SharedRoles
from marble_core.evaluation.watch import Look, Record
from marble_core.runtime import progress
from marble_core.tracking.provenance import code_tags
from marble_core.tracking.step_history import History, write_history
from marble_core.training import loop
from marble_core.training.state import versions
from marble_core.training.watching import Watch
from marble_core.types import Prompt, StepReport

_SAME = ("model", "revision", "solver", "steps", "guidance_scale", "height", "width", "precision", "noise_seed", "batch_size", "prompts_sha256")  # fmt: skip
# Of the history, what figures show; of a training of many steps the means of blocks of them.
_SHOWN = ("alpha/", "alpha_star/", "consistency/", "cosine/", "held_out/", "grad_norm/", "update/", "clamped", "stationary", "inactive", "skipped")  # fmt: skip
_POINTS = 300


def run_cell(
    config: RunConfig,
    arm: str,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    directory: Path,
    evaluate_at: Sequence[int],
    shared: Path,
    watched: Sequence[Prompt] = (),
) -> Cell:
    """Train on ``prompts`` to the last of ``evaluate_at``, evaluate on ``held_out`` after each of these steps, return the numbers.

    What lies in ``directory`` is not done again; an adapter or checkpoint that is gone is trained again, to the same bits. Roles
    that do not depend on the arm are taken from ``shared``, or left there. What the prompts ``watched`` showed lies in
    ``directory/watch.jsonl``. Raises Taken where another process works on the cell.
    """
    checkpoints = CheckpointStore(directory / "checkpoints", None, "study", config.storage)
    with checkpoints.owned():
        missing = [s for s in evaluate_at if not (_place(directory, s) / "adapter" / ADAPTER_FILE).is_file()]
        if missing:
            _forget(checkpoints.local, min(missing))
            _train(config, prompts, checkpoints, directory, evaluate_at, watched)
        for step in evaluate_at:
            here = _place(directory, step)
            if not (here / EVALUATION).is_file():
                run_evaluation(config, held_out, here / "adapter", here, shared=SharedRoles(shared))
        looks = Record.load(directory / WATCH).looks
        return _cell(config, arm, held_out, {step: _place(directory, step) for step in evaluate_at}, looks)


def _place(directory: Path, step: int) -> Path:
    return directory / f"step-{step}"


def _forget(checkpoints: Path, step: int) -> None:
    """Checkpoints from this step on, so that training comes by it again; later ones are made again on the way."""
    for path in checkpoints.iterdir():
        if is_name(path.name) and step_of(path.name) >= step:
            shutil.rmtree(path)


def _train(
    config: RunConfig,
    prompts: Sequence[Prompt],
    checkpoints: CheckpointStore,
    directory: Path,
    keep: Sequence[int],
    watched: Sequence[Prompt],
) -> None:
    learner = loop.start_learner(config)

    def report(done: StepReport) -> None:
        """Comes before the checkpoint of its step, so that a run never goes on behind an adapter that it has not kept."""
        if learner.step in keep and not (_place(directory, learner.step) / EVALUATION).is_file():
            _keep(learner, _place(directory, learner.step))
        progress.emit("train", learner.step, config.train.steps, "; ".join(done.notes))

    loop.train(learner, prompts, checkpoints, report, Watch(config, watched, directory / WATCH))


def _keep(learner: Learner, place: Path) -> None:
    """The adapter that is evaluated (the EMA) and what led to it; whole or not at all."""
    draft = place.with_name(f".draft-{place.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    learner.policy.save_adapter(draft / "adapter", learner.policy.ema)
    write_history(learner.history, draft / HISTORY)
    (draft / CONFIG).write_text(learner.config.to_json(), encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    draft.rename(place)


def _cell(config: RunConfig, arm: str, held_out: Sequence[Prompt], places: Mapping[int, Path], looks: Sequence[Look]) -> Cell:
    found = {step: Evaluation.load(place / EVALUATION) for step, place in places.items()}
    last, lines = found[max(found)], {step: _lines(place) for step, place in places.items()}
    measured, free = {**last.rewards, **last.held_out}, [v.name for v in last.variants if v.model == "base"]
    first: dict[tuple[str, str], int] = {}
    texts = [first.setdefault((p.source, p.text), i) for i, p in enumerate(held_out)]
    history = History.load(places[max(places)] / HISTORY).thinned(_POINTS)
    evaluations = {
        step: _evaluated(own, _weights_sha256(places[step] / "adapter"), lines[step], measured) for step, own in found.items()
    }
    kept = [n for n in history.metrics if n.startswith(_SHOWN) or (n.startswith("reward/") and n.endswith("/mean"))]
    shown = lines[max(lines)]
    return Cell(
        arm=arm,
        seed=config.seed,
        commit=code_tags().get("mlflow.source.git.commit", ""),
        versions=versions() | {"transformers": version("transformers"), "numpy": np.__version__},
        config=config.digest,
        rewards=tuple(last.rewards),
        held_out=tuple(last.held_out),
        measuring={key: last.settings[key] for key in _SAME},
        sources=tuple(p.source for p in held_out),
        texts=tuple(texts),
        base=_scores(shown, "base", measured),
        evaluations=evaluations,
        steps=tuple(map(int, history.steps)),
        history={name: as_column(list(history.metrics[name])) for name in sorted(kept)},
        free_roles={name: _scores(shown, name, measured) for name in free},
        varied=tuple(line["index"] for line in shown if "distances" in line),
        distances=_distances(shown, ["base", *free]),
        watched={look.step: look.alarms for look in looks},
    )


def _evaluated(
    evaluation: Evaluation, weights_sha256: str, lines: Sequence[Mapping[str, Any]], measured: Mapping[str, RewardResult]
) -> CellEvaluation:
    gains = {}
    for name, result in evaluation.measured.items():
        if (std := result.base_std) > 0:
            d = result.difference
            gains[name] = Estimate(d.mean / std, d.low / std, d.high / std)
    own = [v.name for v in evaluation.variants if v.model == "trained"]
    return CellEvaluation(
        gains,
        evaluation.mean_gain,
        evaluation.alarms,
        evaluation.diversity,
        weights_sha256,
        _scores(lines, "trained", measured),
        evaluation.variants,
        {name: _scores(lines, name, measured) for name in own},
        _distances(lines, ["trained", *own]),
    )


def _weights_sha256(adapter: Path) -> str:
    """Of the tensors and their names alone: safetensors writes the metadata of a file in an order that changes."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(adapter / ADAPTER_FILE).items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.float().numpy().tobytes())
    return found.hexdigest()


def _lines(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / IMAGES / SCORES).read_text(encoding="utf-8").splitlines()]


def _scores(lines: Sequence[Mapping[str, Any]], role: str, measured: Mapping[str, RewardResult]) -> dict[str, Column]:
    """Each reward's scores by prompt, at ``RewardResult.digits`` and one more: at most a thousandth of the base's std."""
    return {
        name: as_column([line[role].get(name, float("nan")) for line in lines], result.digits + 1)
        for name, result in measured.items()
    }


def _distances(lines: Sequence[Mapping[str, Any]], roles: Sequence[str]) -> dict[str, Column]:
    varied = [line["distances"] for line in lines if "distances" in line]
    return {role: as_column([distances[role] for distances in varied]) for role in roles if varied}
