"""Both servers are asked, by prepare for a run, and by ``marble check`` those that the environment names."""

from __future__ import annotations

import os

from marble_core.config.schema import RunConfig
from marble_core.estimate.sizes import sizes_of
from marble_core.preflight.answers import Answer, ask, lines, require
from marble_core.preflight.models import ask_mlflow
from marble_core.preflight.store import ask_s3, checkpoints
from marble_core.runtime import progress
from marble_core.storage.s3 import S3

CHECK = "preflight"  # the name of the run below whose prefix ``marble check`` asks


def ask_servers(config: RunConfig, s3: S3, run_id: str) -> list[Answer]:
    """S3 first; MLflow is not asked where S3 has said no."""
    answers = ask_s3(s3, run_id)
    if answers[-1].state != "no":
        answers.append(ask("S3: the run's checkpoints", lambda: checkpoints(s3, run_id)))
    return answers if answers[-1].state == "no" else [*answers, *_mlflow(config, run_id)]


def require_servers(config: RunConfig, s3: S3, run_id: str) -> list[Answer]:
    """The same for prepare, which shows the table as it goes. Raises MarbleError with the first no."""
    answers = ask_servers(config, s3, run_id)
    for line in lines(answers):
        progress.emit("prepare", note=line)
    require(answers)
    return answers


def ask_named(config: RunConfig) -> list[Answer]:
    """Of the servers that this machine's environment names; none where it names none."""
    answers: list[Answer] = []
    if any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")):
        answers += ask_s3(S3(config.storage.bucket), CHECK)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        answers += _mlflow(config)
    return answers


def _mlflow(config: RunConfig, run_id: str = "") -> list[Answer]:
    sizes = sizes_of(config.model)
    return ask_mlflow(config, 4 * sizes.lora(config.lora.rank) if sizes else 1_000_000, run_id)
