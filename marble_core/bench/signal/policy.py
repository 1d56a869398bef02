"""The fixed policy of a bank: the untrained LoRA, a trained adapter, or a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open

from marble_core.checkpoints.start_from import downloaded
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.models.adapter_file import read_lora_file
from marble_core.models.policy import Policy
from marble_core.training import loop
from marble_core.training.state import TENSORS, load_weights
from marble_core.types import MarbleError, Scorer


def load(config: RunConfig, adapter: Path | None) -> tuple[Policy, Sequence[Scorer]]:
    """The policy, and the rewards of the configuration.

    ``adapter``: a directory with a LoRA, which ``default`` and ``old`` then both are, or with a whole checkpoint, whose ``old``
    is the one that samples. Without it: the checkpoint of ``train.start_from``, else the untrained LoRA. Raises MarbleError where
    it does not fit the configuration.
    """
    learner = loop.start(config)
    if adapter and (adapter / TENSORS).is_file():
        load_weights(replace(learner, config=config.model_copy(update={"train": _from(config, adapter)})), adapter)
    elif adapter:
        _adopt(learner.policy, adapter, config)
    elif config.train.start_from:
        with downloaded(config.train.start_from) as directory:
            load_weights(learner, directory)
    return learner.policy, learner.scorers


def weights_file(adapter: Path) -> Path:
    """What an adapter's directory is known by. Raises MarbleError where it holds neither a LoRA nor a checkpoint."""
    for name in (ADAPTER_FILE, TENSORS):
        if (adapter / name).is_file():
            return adapter / name
    raise MarbleError(f"The adapter directory {adapter} holds neither {ADAPTER_FILE} nor a checkpoint's {TENSORS}.")


def _from(config: RunConfig, adapter: Path) -> object:
    return config.train.model_copy(update={"start_from": str(adapter)})


def _adopt(policy: Policy, adapter: Path, config: RunConfig) -> None:
    """The adapter's weights as ``default`` and ``old``."""
    path = adapter / ADAPTER_FILE
    weights = read_lora_file(path, policy.transformer, config.lora.rank)
    default = policy.parameters_of("default")
    if weights.keys() != default.keys():
        odd = min(weights.keys() ^ default.keys())
        raise MarbleError(f"The LoRA {path} is another model's: its layers are not those of model.family; one is {odd}.")
    alpha = _alpha(path)
    if alpha is not None and alpha != config.lora.alpha:
        raise MarbleError(f"The LoRA {path} has alpha {alpha:g}, but lora.alpha is {config.lora.alpha}: set it so.")
    with torch.no_grad():
        for name, p in default.items():
            p.copy_(weights[name])
    policy.copy("default", "old")
    policy.old_is_default = True


def _alpha(path: Path) -> float | None:
    """As its metadata has it, which diffusers writes."""
    with safe_open(path, "pt") as file:
        said = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    return next((float(value) for key, value in said.items() if key.endswith("lora_alpha")), None)
