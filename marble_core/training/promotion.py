"""From an evaluation to a decision, and to the weights that the registry gets: at the strength of ``registry.diversity_loss``."""

from __future__ import annotations

import shutil
from pathlib import Path

from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import CONFIG, EVALUATION, read_prepared
from marble_core.evaluation.decision_file import write_decision
from marble_core.evaluation.gate import NOTHING_NEW, Decision, decide, rehearsed
from marble_core.evaluation.results import Evaluation
from marble_core.models.adapter_file import fold
from marble_core.runtime.files import atomic_directory
from marble_core.storage.uri import portable
from marble_core.tracking.outcome import write_page
from marble_core.tracking.registry import log_adapter
from marble_core.tracking.step_history import trained_steps


def decided(
    config: RunConfig, adapter: Path, out: Path, scratch: Path, mlflow_run: str, rehearsal: bool = False
) -> tuple[Evaluation, Decision]:
    """The evaluation in ``out`` and what the gate makes of it, which is written beside it for whoever acts on it."""
    evaluation = Evaluation.load(out / EVALUATION)
    log_at_strength(config, adapter, evaluation.strength, scratch, mlflow_run)
    decision = decide(evaluation, config.registry)
    decision = rehearsed(decision) if rehearsal else decision
    write_decision(out, decision, config.registry)
    return evaluation, decision


def log_at_strength(config: RunConfig, adapter: Path, strength: float, scratch: Path, mlflow_run: str) -> None:
    """Log what register makes a version of: the adapter as it was evaluated, with its strength in its weights. Where none is chosen
    it is what train has logged."""
    if config.registry.diversity_loss is None:
        return
    place = adapter if strength == 1 else fold(adapter, strength, scratch / "folded")
    metadata = {"rewards": list(config.reward_names), "method": config.balance.method, "config": config.digest}
    log_adapter(place, portable(config.model.path), mlflow_run, trained_steps(adapter), {**metadata, "strength": strength})


def decided_nothing(prepared: Path, out: Path, report: Path, said: str) -> None:
    """What evaluate leaves where nothing was trained: a decision without an evaluation, and a page that says why."""
    config, run_id = read_prepared(prepared)
    with atomic_directory(out):
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(prepared / CONFIG, out / CONFIG)
        write_decision(out, Decision(False, NOTHING_NEW, (said,)), config.registry)
    write_page(report, "Nothing was trained, so there is nothing to compare.", [said], {"Run": run_id})
