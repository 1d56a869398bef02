"""A bank on the disk: its settings, and one file per batch. One that was stopped goes on with the batch that it was at."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_core import __version__
from marble_core.bench.signal import batches, policy
from marble_core.bench.signal.batches import Design
from marble_core.config.schema import RunConfig
from marble_core.tracking.provenance import code_tags
from marble_core.types import MarbleError

if TYPE_CHECKING:
    from rich.console import Console

SETTINGS = "bank.json"
SECTIONS = (
    "seed",
    "model",
    "lora",
    "data",
    "rollout",
    "rewards",
    "loss",
    "reward_names",
)  # of the configuration: what a batch depends on
FREE = ("rollout.batch_size", "loss.micro_batch", "loss.kl_", "data.evaluation", "model.compile", "model.offload")  # or not


def collect(config: RunConfig, design: Design, count: int, adapter: Path | None, out: Path, console: Console) -> list[Path]:
    """The files of the first ``count`` batches under ``out``; those that are not there are made.

    Raises MarbleError where ``out`` holds a bank of other settings, or the policy does not fit the configuration.
    """
    from marble_core.prompts.dataset import prepare_data

    _keep_settings(_settings(config, design, adapter), out)
    paths = [batches.path_of(out, batch) for batch in range(count)]
    missing = [batch for batch, path in enumerate(paths) if not path.is_file()]
    if missing:
        prompts = prepare_data(config).train
        fixed, scorers = policy.load(config, adapter)
        for batch in missing:
            began = time.monotonic()
            found, table = batches.gradients(fixed, scorers, prompts, config, design, batch)
            batches.write(found, table, paths[batch])
            console.print(f"batch {batch + 1} of {count}: {len(table.R_NK)} images, {time.monotonic() - began:.0f} s")
    return paths


def settings_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    return found


def _settings(config: RunConfig, design: Design, adapter: Path | None) -> dict[str, Any]:
    flat = {k: v for k, v in config.flat().items() if k.split(".")[0] in SECTIONS and not k.startswith(FREE)}
    flat = {k: v for k, v in flat.items() if not k.endswith(".timeout")}
    flat["balance.subtract_common"] = str(config.balance.subtract_common)
    flat["train.start_from"] = str(config.train.start_from)
    weights = hashlib.sha256(policy.weights_file(adapter).read_bytes()).hexdigest() if adapter else "untrained"
    return {
        "configuration": flat,
        "design": asdict(design),
        "policy": weights if not config.train.start_from or adapter else config.train.start_from,
        "version": __version__,
        "commit": code_tags().get("mlflow.source.git.commit", ""),
    }


def _keep_settings(ours: dict[str, Any], out: Path) -> None:
    """Those of the bank under ``out``, where there is one, else ours are written."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / SETTINGS).is_file():
        unfinished = out / f"{SETTINGS}.unfinished"
        unfinished.write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, out / SETTINGS)
        return
    theirs = settings_of(out)
    for part in ("configuration", "design"):
        for key in sorted(ours[part].keys() | theirs[part].keys()):
            now, then = ours[part].get(key), theirs[part].get(key)
            if now != then:
                raise MarbleError(
                    f"The bank in {out} was begun with {key} = {then}, not {now}: set it so, or give another --out."
                )
    if ours["policy"] != theirs["policy"]:
        raise MarbleError(
            f"The bank in {out} is of another policy ({theirs['policy'][:40]}): give its --adapter, or another --out."
        )
