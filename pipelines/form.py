"""What Kubeflow's page needs to show the pipeline as a form, and kfp's compiler cannot write (2.17): drop-downs, and a text on each field.

The page shows a field as "name - type" and nothing else of it, but a drop-down for one with ``literals``; and it shows the pipeline's
description. A field without a default blocks Start, so each has one, and an empty text says nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import yaml

from marble_core.config.data import DataConfig
from marble_core.config.loading import presets
from marble_kubeflow.pipelines.settings import Settings


def literals(settings: Settings) -> dict[str, list[str]]:
    """The fields with a choice. Each list has the field's default."""
    usual = ("nvidia.com/gpu", "amd.com/gpu")
    return {
        "preset": list(presets()),
        "new_prompts": ["", *get_args(DataConfig.model_fields["new_prompts"].annotation)],
        "accelerator": list(dict.fromkeys(filter(None, (*usual, settings.gpu.resource, *settings.gpu.resources)))),
    }


def complete(path: Path, settings: Settings) -> None:
    """Write them into the compiled file. The comments at its head stay."""
    text = path.read_text(encoding="utf-8")
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    spec, *platform = yaml.safe_load_all(text)
    fields: dict[str, dict[str, Any]] = spec["root"]["inputDefinitions"]["parameters"]
    for name, choice in literals(settings).items():
        fields[name]["literals"] = choice
    said = [f"{name}: {' '.join(field['description'].split())}" for name, field in sorted(fields.items())]
    spec["pipelineInfo"]["description"] = "\n".join([spec["pipelineInfo"]["description"], "", *said])
    path.write_text(head + yaml.safe_dump_all([spec, *platform], sort_keys=True, allow_unicode=True), encoding="utf-8")
