"""The commented configuration that ``marble init`` writes: every key there is, with its description."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel

from marble_core.config.loading import load_config
from marble_core.config.schema import RunConfig

HEAD = """\
# MARBLE: all settings of a run, as the preset {preset} has them. Change some, delete the others, and say
#   marble run --preset {preset} --config THIS_FILE
# Sources of the values: [P] the paper (arXiv 2605.06507), [C] its released code, [N] DiffusionNFT, [O] ours."""


def starter(preset: str) -> str:
    """YAML that changes nothing when it is laid over the preset. Raises MarbleError for an unknown one."""
    config = load_config(preset)
    values = config.model_dump(mode="json")
    lines = [HEAD.format(preset=preset)]
    for name, field in RunConfig.model_fields.items():
        section, value = getattr(config, name), values[name]
        if isinstance(section, BaseModel):
            said = {key: own.description or "" for key, own in type(section).model_fields.items()}
            lines += ["", f"{name}:", *(_line(f"  {key}", below, said[key]) for key, below in value.items())]
        elif name == "rewards":
            lines += ["", f"{name}:", *(f"  - {_flow(reward)}" for reward in value)]
        else:
            lines += ["", _line(name, value, field.description or "")]
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any, comment: str) -> str:
    return f"{key}: {_flow(value)}" + (f"  # {comment}" if comment else "")


def _flow(value: Any) -> str:
    """In one line; a bare value without YAML's end of document."""
    return yaml.safe_dump(value, default_flow_style=True, width=1_000_000, sort_keys=False).removesuffix("...\n").strip()
