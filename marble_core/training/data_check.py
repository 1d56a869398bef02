"""What prepare and marble check do before anything is asked of a GPU. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from marble_core.config.schema import ModelConfig, RunConfig

if TYPE_CHECKING:
    from marble_core.prompts.dataset import Data


def checked_data(config: RunConfig) -> Data:
    """The run's prompts, and everything of a configuration that can be checked without a GPU. Raises MarbleError."""
    from marble_core.estimate import check_fits
    from marble_core.prompts.dataset import prepare_data
    from marble_core.rewards.applies import check_heard, check_named, check_prompts
    from marble_core.rewards.cards import cards_of
    from marble_core.rewards.own_classes import check_own_classes
    from marble_core.storage.artifacts import Part
    from marble_core.storage.catalogue import few_steps
    from marble_core.storage.uri import check_access

    check_fits(config, cards := cards_of(config.measured))
    said = (check_access(config.model.path, Part.PIPELINE, config.model.revision), *check_own_classes(config))
    _check_family(config.model)
    check_named(config.measured)
    data = prepare_data(config)
    data.warnings.extend(filter(None, (*said, few_steps(config.model))))
    check_heard(config, data.train, data.evaluation, cards)
    data.warnings.extend(check_prompts(config, {"train": data.placed_train, "evaluation": data.placed_evaluation}, cards))
    return data


def _check_family(model: ModelConfig) -> None:
    """Where the model is on this machine, what it says it is must be of the family that shall read it."""
    from marble_core.config.families import check_pipeline
    from marble_core.storage.artifacts import Part
    from marble_core.storage.uri import find

    place = find(model.path, Part.PIPELINE, model.revision)
    if (directory := place if isinstance(place, Path) else place.cached()) is not None:
        index = json.loads((directory / "model_index.json").read_text(encoding="utf-8"))
        check_pipeline(model.family, index.get("_class_name", ""), model.path)
