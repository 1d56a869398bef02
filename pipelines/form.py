"""What Kubeflow's page needs to show the pipeline as a form, and kfp's compiler does not write (2.17): drop-downs, and a text on each field.

The page shows a field as "name - type" and nothing else of it, but a drop-down for one with ``literals``; and it shows the pipeline's
description. A field without a default blocks Start, so each has one, and an empty text says nothing.
"""

from __future__ import annotations

from typing import Any, get_args

from marble_core.config.data import DataConfig
from marble_core.config.loading import presets
from marble_core.config.pipeline_parameters import AS_THE_PRESET
from marble_kubeflow.pipelines.settings import Settings


def literals(settings: Settings) -> dict[str, list[str]]:
    """The fields with a choice. Each list has the field's default."""
    usual = ("nvidia.com/gpu", "amd.com/gpu")
    return {
        "preset": list(presets()),
        "rehearse": ["no", "yes"],
        "new_prompts": [AS_THE_PRESET, *get_args(DataConfig.model_fields["new_prompts"].annotation)],
        "accelerator": list(dict.fromkeys(filter(None, (*usual, settings.gpu.resource, *settings.gpu.resources)))),
    }


def complete(pipeline: Any, settings: Settings) -> None:
    """Add them to the specification that kfp has made of the pipeline, before it is written."""
    spec = pipeline.pipeline_spec
    fields = spec.root.input_definitions.parameters
    for name, choice in literals(settings).items():
        for value in choice:
            fields[name].literals.add().string_value = value
    said = [f"{name}: {' '.join(fields[name].description.split())}" for name in sorted(fields)]
    spec.pipeline_info.description = "\n".join([spec.pipeline_info.description, "", *said])
