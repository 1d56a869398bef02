"""``train.start_from``: another run's checkpoint by its s3:// address, or a LoRA, whoever made it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marble_core.checkpoints.manifest import Broken, is_name
from marble_core.checkpoints.run_checkpoints import RunCheckpoints
from marble_core.config.loading import parse_config
from marble_core.config.resume_rules import require_same_run
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import CONFIG
from marble_core.runtime.scratch import scratch_directory
from marble_core.storage.lora_place import fetch_lora, require_lora
from marble_core.storage.s3 import S3
from marble_core.types import MarbleError

_ADDRESS = re.compile(r"s3://([^/]+(?:/[^/]+)*?)/runs/([^/]+)(?:/checkpoints(?:/([^/]+))?)?/?")
_HINT = "write s3://BUCKET/runs/RUN_ID for a run's latest checkpoint, or the path, s3://, hub or https:// address of a LoRA"


def locate(address: str) -> tuple[RunCheckpoints, str]:
    """The run and the name of the checkpoint: the one that the address names, else the run's latest.

    Raises MarbleError where the address names no run, or the run has no checkpoint.
    """
    match = _ADDRESS.fullmatch(address)
    if not match or (match[3] and not is_name(match[3])):
        raise MarbleError(
            f"train.start_from = {address!r} names no run: write s3://BUCKET/runs/RUN_ID, for its latest checkpoint, "
            "or s3://BUCKET/runs/RUN_ID/checkpoints/step-..., for one of them."
        )
    remote = RunCheckpoints(S3(match[1]), match[2])
    complete, _ = remote.names()
    name = match[3] or remote.latest()
    if name not in complete:
        known = f"it has {', '.join(complete)}" if complete else "it has none"
        raise MarbleError(f"train.start_from = {address!r}: there is no complete checkpoint; {known}.")
    assert name is not None
    return remote, name


@contextmanager
def downloaded(address: str) -> Iterator[Path]:
    """A directory with the whole checkpoint, for as long as the block lasts."""
    remote, name = locate(address)
    with scratch_directory() as directory:
        try:
            remote.download(name, directory)
        except Broken as error:
            raise MarbleError(f"train.start_from: {remote.uri(name)} is broken: {error}; name another checkpoint.") from None
        yield directory


@contextmanager
def beginning(address: str) -> Iterator[Path]:
    """What ``train.start_from`` names, for as long as the block lasts: the directory of a whole checkpoint, or a LoRA's file."""
    if is_checkpoint(address):
        with downloaded(address) as directory:
            yield directory
    else:
        with _said_of(address):
            file = fetch_lora(address)
        yield file


def is_checkpoint(address: str) -> bool:
    """Whether it is below runs/ of a bucket, where checkpoints lie and nothing else."""
    return bool(re.match(r"s3://[^/]+/runs(/|$)", address))


@contextmanager
def _said_of(address: str) -> Iterator[None]:
    try:
        yield
    except MarbleError as error:
        raise MarbleError(f"train.start_from = {address!r}: {str(error).rstrip('.')}; {_HINT}.") from None


def check_beginning(config: RunConfig, s3: S3, run_id: str) -> None:
    """What training will begin from, before a GPU is asked for: this run's own checkpoint, else ``train.start_from``.

    Raises MarbleError where the run was begun with settings that may not change, or the address names no checkpoint.
    """
    own = RunCheckpoints(s3, run_id)
    if name := own.latest():
        if before := config_of_latest(own):
            require_same_run(before, config, own.uri(name))
    elif address := config.train.start_from:
        if is_checkpoint(address):
            locate(address)
        else:
            with _said_of(address):
                require_lora(address, config.lora.rank)


def config_of_latest(run: RunCheckpoints) -> RunConfig | None:
    """The configuration in the run's latest checkpoint. Not verified: what is broken here, training names and skips."""
    name = run.latest()
    found = run.s3.get(f"{run.prefix}/{name}/{CONFIG}") if name else None
    with contextlib.suppress(MarbleError):
        return parse_config(found[0], run.uri(name or "")) if found else None
    return None
