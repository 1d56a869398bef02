"""The fixed policy of a bank: the untrained LoRA, a trained adapter, or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from marble_core.checkpoints.start_from import beginning
from marble_core.config.schema import RunConfig
from marble_core.models.policy import Policy
from marble_core.storage.lora_place import lora_file
from marble_core.training import loop
from marble_core.training.state import TENSORS, load_weights
from marble_core.types import Scorer


def load(config: RunConfig, adapter: Path | None) -> tuple[Policy, Sequence[Scorer]]:
    """The policy, and the rewards of the configuration.

    ``adapter``: a directory with a LoRA, which ``default`` and ``old`` then both are, or with a whole checkpoint, whose ``old``
    is the one that samples. Without it: the checkpoint of ``train.start_from``, else the untrained LoRA. Raises MarbleError where
    it does not fit the configuration.
    """
    learner = loop.start_learner(config)
    if adapter and (adapter / TENSORS).is_file():
        load_weights(replace(learner, config=config.model_copy(update={"train": _from(config, adapter)})), adapter)
    elif adapter:
        learner.policy.begin_from(learner.policy.read_adapter(adapter), adapter)
    elif config.train.start_from:
        with beginning(config.train.start_from) as place:
            load_weights(learner, place)
    return learner.policy, learner.scorers


def weights_file(adapter: Path) -> Path:
    """What an adapter's directory is known by. Raises MarbleError where it holds neither a LoRA nor a checkpoint."""
    return adapter / TENSORS if (adapter / TENSORS).is_file() else lora_file(adapter)


def _from(config: RunConfig, adapter: Path) -> object:
    return config.train.model_copy(update={"start_from": str(adapter)})
