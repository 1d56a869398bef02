"""The commented configuration that ``marble init`` writes: every key there is, with what config.py says of it."""

from __future__ import annotations

import inspect
import re
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
    values, said = config.model_dump(mode="json"), comments(RunConfig)
    lines = [HEAD.format(preset=preset)]
    for name in RunConfig.model_fields:
        section, value = getattr(config, name), values[name]
        if isinstance(section, BaseModel):
            behind = comments(type(section))
            lines += ["", f"{name}:", *(_line(f"  {key}", below, behind.get(key, "")) for key, below in value.items())]
        elif name == "rewards":
            lines += ["", f"{name}:", *(f"  - {_flow(reward)}" for reward in value)]
        else:
            lines += ["", _line(name, value, said.get(name, ""))]
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any, comment: str) -> str:
    return f"{key}: {_flow(value)}" + (f"  # {comment}" if comment else "")


def _flow(value: Any) -> str:
    """In one line; a bare value without YAML's end of document."""
    return yaml.safe_dump(value, default_flow_style=True, width=1_000_000, sort_keys=False).removesuffix("...\n").strip()


def comments(section: type[BaseModel]) -> dict[str, str]:
    """What stands behind each field in the source."""
    return dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(section), re.MULTILINE))
