"""The directory that prepare writes and every later stage reads: the run's configuration, its id, and the names of its files."""

from __future__ import annotations

import json
import re
import secrets
import time
from pathlib import Path

from marble_core.config.loading import read_config
from marble_core.config.schema import RunConfig
from marble_core.types import MarbleError


def new_run_id() -> str:
    """A name for a run that sorts by time: 20261124-093000-3fa9c1."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def check_run_id(run_id: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", run_id):
        raise MarbleError(f"The run id {run_id!r} must be 1 to 64 letters, digits, dots, dashes or underscores.")
    return run_id


def read_prepared(prepared: Path) -> tuple[RunConfig, str]:
    """The configuration and the run id that ``prepare`` wrote."""
    config = read_config(prepared / "config.json")
    try:
        return config, check_run_id(json.loads((prepared / "run.json").read_bytes())["run_id"])
    except (OSError, ValueError, TypeError, LookupError):
        raise MarbleError(f"{prepared / 'run.json'} is not what prepare wrote; run the prepare stage again.") from None


SHARED = ("config.json", "run.json", "train.jsonl")  # what a process reads of what prepare wrote


ADAPTER_FILE = "pytorch_lora_weights.safetensors"


ADAPTER_DIRECTORY = "adapter_weights"  # of a model that mlflow.diffusers logged
