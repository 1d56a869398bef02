"""What the stages hand on: the names of its files, the run's id, and the reader of the directory that prepare writes."""

from __future__ import annotations

import json
import re
import secrets
import time
from pathlib import Path

from marble_core.config.loading import read_config
from marble_core.config.schema import RunConfig
from marble_core.types import MarbleError

# Written by prepare.
CONFIG = "config.json"  # the whole configuration; in a checkpoint and beside an evaluation too
RUN = "run.json"  # the run's id, what prepare had to say, and why there is nothing to train on
TRAIN_PROMPTS = "train.jsonl"
HELD_OUT_PROMPTS = "evaluation.jsonl"
WATCHED_PROMPTS = "watched.jsonl"  # empty where nothing is watched
DATA_REPORT = "data_report.json"  # and as a page, .html
FULL = "full_config.json"  # of a rehearsal: the configuration of the run that it rehearses
SHARED = (CONFIG, RUN, TRAIN_PROMPTS, WATCHED_PROMPTS)  # what each process of a training reads
TIMING = "timing.json"  # of a rehearsal's stage: what it took, in seconds; of any evaluation: what its images took
# Written by train.
ADAPTER_FILE = "pytorch_lora_weights.safetensors"
ADAPTER_DIRECTORY = "adapter_weights"  # of a model that mlflow.diffusers logged
HISTORY = "history.jsonl"  # one line per step
WATCH = "watch.jsonl"  # one line per look: docs/watching.md, section 4; in a checkpoint and beside the checkpoints too
PROGRESS = "progress.json"  # beside the checkpoints alone: how far the training is, written anew after each step
SAMPLES = "samples"  # grids of images of fixed prompts, step-000010.png, and their prompts.json
# Written by evaluate.
EVALUATION = "evaluation.json"
DECISION_FILE = "decision.json"  # the gate's, see evaluation/decision_file.py
IMAGES = "images"
SCORES = "scores.jsonl"  # below IMAGES, one line per prompt
EXPLORER = "explorer.html"
VOTE = "vote.html"  # the blind vote; the votes that were added lie in VOTES
VOTES = "counted_votes.json"
REPORT = "report.html"
REPORT_INPUTS = "report.json"  # what report.html was made of besides files: earlier runs and links


def new_run_id(rehearsal: bool = False) -> str:
    """A name for a run that sorts by time: 20261124-093000-3fa9c1; that of a rehearsal says so."""
    return f"{'rehearsal-' if rehearsal else ''}{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def check_run_id(run_id: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", run_id):
        raise MarbleError(f"The run id {run_id!r} must be 1 to 64 letters, digits, dots, dashes or underscores.")
    return run_id


def read_prepared(prepared: Path) -> tuple[RunConfig, str]:
    """The configuration and the run id that ``prepare`` wrote."""
    config = read_config(prepared / CONFIG)
    try:
        return config, check_run_id(json.loads((prepared / RUN).read_bytes())["run_id"])
    except (OSError, ValueError, TypeError, LookupError):
        raise MarbleError(f"{prepared / RUN} is not what prepare wrote; run the prepare stage again.") from None


def nothing_new(prepared: Path) -> str:
    """Why the run has nothing to train on, in words; empty where it has."""
    try:
        return str(json.loads((prepared / RUN).read_bytes()).get("nothing_new", ""))
    except (OSError, ValueError, AttributeError):
        raise MarbleError(f"{prepared / RUN} is not what prepare wrote; run the prepare stage again.") from None
