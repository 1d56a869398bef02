"""The pipeline's stages as typed functions: files in, files out. Each component calls one of them.

``prepare`` writes what the others read (docs/architecture.md, section 4). Where nothing is new they end at once. Only two import torch.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_core.config.formats import check_pipeline
from marble_core.config.loading import load_config, read_config
from marble_core.config.stage_files import (
    CONFIG,
    DECISION_FILE,
    EVALUATION,
    HISTORY,
    IMAGES,
    REPORT,
    TRAIN_PROMPTS,
    WATCHED_PROMPTS,
    check_run_id,
    new_run_id,
    nothing_new,
    read_prepared,
)
from marble_core.rewards.applies import check_prompts, unplaced
from marble_core.rewards.cards import cards_of
from marble_core.runtime import progress
from marble_core.runtime.again import Again, keep_at_it
from marble_core.runtime.environment import KFP_RUN, PIPELINE_FORMAT
from marble_core.runtime.files import atomic_directory
from marble_core.runtime.scratch import scratch_directory
from marble_core.tracking.gpu_hours import ESTIMATED, counted_from_here, gpu_hours_told, gpus_of_stage
from marble_core.tracking.kubeflow_metrics import of_evaluation, of_training
from marble_core.tracking.notices import failures_noticed, notify_alarms, notify_outcome
from marble_core.tracking.step_history import trained_steps
from marble_core.training.rehearsal import begin, foretold, rehearses, tags_of, timed

if TYPE_CHECKING:
    from marble_core.tracking.outcome import Outcome
    from marble_core.tracking.tracker import Tracker
    from marble_core.training.wanted import Wanted

NO_REPORT = "The report could not be written; the evaluation is whole, and the log says why."


@contextmanager
def _stage(name: str) -> Iterator[dict[str, Any]]:
    """Frames a stage's work with events, once the pipeline that started it is one that this code understands."""
    with counted_from_here(), progress.stage(name) as result:
        check_pipeline(os.environ.get(PIPELINE_FORMAT, ""))
        yield result


@failures_noticed("prepare")
def prepare(
    preset: str, overrides: list[str], run_id: str, out: Path, page: Path, form: Mapping[str, Any] | None = None, name: str = ""
) -> Wanted:
    """Check all that can be checked without a GPU, and write the prepared directory; ``page`` becomes the data report as HTML.
    ``form`` (marble_core.config.pipeline_parameters) is laid over the overrides; ``name`` is the run's in MLflow without a run id.

    Returns the run id, and the GPUs, CPUs and memory of the pods of train and evaluate (marble_core.training.wanted).
    """
    with _stage("prepare") as result, timed(out, out):
        from marble_core.checkpoints.start_from import check_beginning
        from marble_core.config.pipeline_parameters import is_rehearsal, overrides_of
        from marble_core.config.redaction import json_without_secrets
        from marble_core.config.rehearsal import rehearsed
        from marble_core.estimate import allowed_gpu_hours, resolve_batch_sizes
        from marble_core.preflight.servers import require_servers
        from marble_core.prompts.data_report import write_page
        from marble_core.storage.s3 import S3
        from marble_core.tracking.kubeflow_page import kubeflow_tags
        from marble_core.tracking.provenance import datasets, run_tags
        from marble_core.tracking.tracker import run_params
        from marble_core.training.data_check import checked_data
        from marble_core.training.prepared import handed_over, write_prepared
        from marble_core.training.retraining import plan_retraining, store_prompts
        from marble_core.training.wanted import Wanted, nodes_of

        config = load_config(preset, overrides=[*overrides, *handed_over(), *overrides_of(preset, **(form or {}))])
        config = resolve_batch_sizes(config, cards := cards_of(config.measured))
        hours = allowed_gpu_hours(config, form or {}, on_cluster=bool(os.environ.get(KFP_RUN)))
        nodes_of(config, cards, form or {})  # before anything is asked for
        name, run_id = "" if run_id else name, check_run_id(run_id or new_run_id())
        answers = require_servers(config, s3 := S3(config.storage.bucket), run_id)
        config, beginning = plan_retraining(config, s3, run_id)
        full, config = config, rehearsed(config) if is_rehearsal(form or {}) else config
        check_beginning(config, s3, run_id)
        data = checked_data(full)
        prompts, said = beginning.prompts(data.train, [*data.evaluation, *data.watched])
        check_prompts(config, {"train": unplaced(prompts)}, cards)  # the champion's too
        with atomic_directory(out):
            out.mkdir(parents=True, exist_ok=True)
            data = data if config is full else begin(out, full, config, data)
            write_prepared(out, config, run_id, said, prompts, data)
            write_page(out / "data_report.html", data.report, [(each.asked, each.answer) for each in answers], data.warnings)
            page.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / "data_report.html", page)
        if prompts and not beginning.own:
            store_prompts(s3, run_id, prompts, beginning.known(data.train))
        with _tracked(
            out, "prepare", "RUNNING", run_params(config), run_tags(preset, config) | kubeflow_tags() | tags_of(out), name
        ) as tracker:
            tracker.log_metrics({ESTIMATED: hours.high} if prompts and hours and hours.high else {})
            sets = {"train": prompts, "evaluation": data.evaluation}
            tracker.log_inputs(datasets(sets, {"train": config.data.train, "evaluation": config.data.evaluation}))
            tracker.log_text(json_without_secrets(config.to_json()), "config.json")
            for file in ("data_report.html", "data_report.json"):
                tracker.log_artifact(out / file)
        result |= {"run_id": run_id, "data_report": str(page)}
        counts = f"{len(prompts)} prompts to train on, {len(data.evaluation)} held out, {len(data.watched)} watched"
        for sentence in (counts, *said, *(f"Warning: {warning}" for warning in data.warnings)):
            progress.emit("prepare", note=sentence)
    return Wanted.of(run_id, full, cards, form or {}, anything=bool(prompts))


@failures_noticed("train")
def train(prepared: Path, out: Path) -> dict[str, float]:
    """Train, and make ``out`` an adapter directory that diffusers loads. Returns the few numbers that Kubeflow shows.
    Where there is nothing to train on, ``out`` is empty and there are no numbers."""
    if wanted := Again.wanted():
        from marble_core.training.launch import newest_checkpoint

        keep_at_it("train", [str(prepared), str(out)], wanted, lambda: newest_checkpoint(prepared))
        return of_training(out, read_prepared(prepared)[0])
    with _stage("train") as result, timed(prepared, out):
        if said := nothing_new(prepared):
            out.mkdir(parents=True, exist_ok=True)
            result |= {"reason": said}
            progress.emit("train", note=said)
            return {}
        from marble_core.prompts import read_prompts, read_watched
        from marble_core.training.launch import processes_wanted, train_on
        from marble_core.training.trainjob import train_on_nodes

        config, run_id = read_prepared(prepared)
        with atomic_directory(out):
            if config.train.nodes > 1:
                train_on_nodes(config, run_id, prepared, out)
            elif (count := processes_wanted(config)) > 1:
                train_on(count, prepared, out)
            else:
                from marble_core.training.loop import run_training  # with all libraries of models: the others do without

                watched = read_watched(prepared / WATCHED_PROMPTS)
                run_training(config, run_id, read_prompts(prepared / TRAIN_PROMPTS), out, watched)
        result |= {"adapter": str(out)}
    return of_training(out, config)


@failures_noticed("evaluate")
def evaluate(prepared: Path, adapter: Path, out: Path, report: Path) -> dict[str, float]:
    """Compare base, champion and trained model on the held-out prompts, and decide; ``report`` becomes the HTML page.

    Returns the few numbers that Kubeflow shows: none where nothing was trained, since nothing is new.
    """
    if wanted := Again.wanted():
        keep_at_it("evaluate", [str(path) for path in (prepared, adapter, out, report)], wanted, lambda: "")
        return _shown(out)
    with _stage("evaluate") as result, timed(prepared, out):
        if said := nothing_new(prepared):
            from marble_core.training.promotion import decided_nothing

            decided_nothing(prepared, out, report, said)
            result |= {"reason": said, "report": str(report)}
            progress.emit("evaluate", note=said)
            return {}
        from marble_core.training.launch import evaluation_processes

        count = evaluation_processes(read_prepared(prepared)[0])
        with (
            _tracked(prepared, "evaluate", "RUNNING") as tracker,
            gpu_hours_told(tracker, gpus_of_stage(count)),
            atomic_directory(out),
            scratch_directory() as scratch,
        ):
            tracker.watch_machine()
            _evaluate(count, prepared, adapter, out, report, scratch, tracker)
        result |= {"evaluation": str(out / EVALUATION), "report": str(report)}
    return _shown(out)


def _evaluate(count: int, prepared: Path, adapter: Path, out: Path, report: Path, scratch: Path, tracker: Tracker) -> None:
    from marble_core.checkpoints.run_checkpoints import RunCheckpoints
    from marble_core.report import shown_files, write_pages
    from marble_core.runtime.gpus import say_missing_gpus
    from marble_core.runtime.housekeeping import housekeeping
    from marble_core.storage.s3 import S3
    from marble_core.tracking.outcome import write_page
    from marble_core.tracking.past_runs import evaluation_metrics
    from marble_core.tracking.registry import fetch_champion
    from marble_core.training.launch_evaluation import evaluate_on
    from marble_core.training.promotion import decided

    config, run_id = read_prepared(prepared)
    say_missing_gpus("evaluate", min(1, config.hardware.gpus))
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(prepared / CONFIG, out / CONFIG)  # for whoever reads the decision
    full = rehearses(prepared)
    incumbent = fetch_champion(full or config, adapter, scratch)
    evaluate_on(count, prepared, adapter, out, incumbent, scratch)
    evaluation, decision = decided(config, adapter, out, scratch, tracker.mlflow_run_id, rehearsal=full is not None)
    past, links = tracker.past_runs(config.registry.model), tracker.links(config.registry.model)
    shown, pages = (out, evaluation, decision, adapter / HISTORY, config, past, run_id, links), [out / REPORT]
    # What was measured outlives its pages.
    if not housekeeping("the report's pages", lambda: pages.extend(set(write_pages(*shown)) - {out / REPORT})):
        progress.emit("evaluate", note=NO_REPORT)
        write_page(out / REPORT, NO_REPORT, decision.reasons, {"Run": run_id, "Decision": decision.summary}, links)
    report.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(out / REPORT, report)
    step, gain = trained_steps(adapter), evaluation.mean_gain.mean
    housekeeping("the hint for retention", lambda: RunCheckpoints(S3(config.storage.bucket), run_id).record_gain(step, gain))
    tracker.log_metrics(evaluation_metrics(evaluation), step)
    notify_alarms(run_id, step, evaluation.alarms, links.get("Run in MLflow", ""))
    for path in (*pages, out / EVALUATION, out / DECISION_FILE):
        tracker.log_artifact(path)
    for path in shown_files(out / IMAGES):
        tracker.log_artifact(path, "evaluation")


def _shown(out: Path) -> dict[str, float]:
    from marble_core.evaluation.results import Evaluation

    return of_evaluation(Evaluation.load(out / EVALUATION)) if (out / EVALUATION).exists() else {}


@failures_noticed("register")
def register(prepared: Path, adapter: Path, evaluation: Path, page: Path) -> Outcome:
    """Do what evaluate decided: make the adapter the next version of the model, or record why not. ``page`` becomes its HTML page."""
    with _stage("register") as result:
        began = time.monotonic()
        from marble_core.evaluation.decision_file import read_decision
        from marble_core.evaluation.gate import REHEARSED
        from marble_core.tracking import registry
        from marble_core.tracking.kubeflow_page import described
        from marble_core.tracking.outcome import Outcome
        from marble_core.training.retraining import successor_tags

        config, run_id = read_config(evaluation / CONFIG), read_prepared(prepared)[1]
        decision, numbers, anew = read_decision(evaluation, config.registry)
        version = alias = ""
        with _tracked(prepared, "register") as tracker:
            mlflow_run, images = tracker.mlflow_run_id, evaluation / IMAGES
            if numbers is None:
                tracker.set_tags(
                    {"marble.decision": decision.summary, "mlflow.note.content": described(" ".join(decision.reasons))}
                )
            elif decision.promote or decision.verdict == REHEARSED:
                more, cards = successor_tags(config, run_id), cards_of(config.measured)
                version, alias = registry.register_version(config, numbers, decision, images, mlflow_run, more, cards=cards)
            else:
                registry.record_refusal(numbers, decision, mlflow_run)
            told = foretold(prepared, adapter, evaluation, time.monotonic() - began) if numbers else []
            notes = [*([anew] if anew else []), *told]
            links = tracker.links(config.registry.model)
            outcome = Outcome(run_id, config.registry.model, decision, numbers, version, alias, notes, links)
            outcome.write_page(page)
            tracker.log_artifact(page)
        notify_outcome(outcome)
        result |= {"model": config.registry.model, "version": version, "alias": alias, "promoted": decision.promote}
        result |= {"verdict": decision.verdict, "reasons": [*decision.reasons, *notes], "foretold": told}
        for note in (outcome.sentence, *notes):
            progress.emit("register", note=note)
    return outcome


@contextmanager
def _tracked(
    prepared: Path,
    stage: str,
    status: str = "FINISHED",
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    name: str = "",
) -> Iterator[Tracker]:
    """The run's MLflow run, which has this status after the block, and the stage's own below it."""
    from marble_core.tracking.tracker import Tracker

    config, run_id = read_prepared(prepared)
    tracker = Tracker.start(config.storage.experiment, name or run_id, run_id, stage, params, tags)
    try:
        yield tracker
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end(status)
