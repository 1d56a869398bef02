"""The reference of all settings is the schema's, and what it says of a value is what loading does."""

from __future__ import annotations

import json
import re
from typing import get_args

import jsonschema
import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from marble_core.algorithm.methods import make_balancer
from marble_core.config.balance import BalanceConfig
from marble_core.config.loading import load_config, presets
from marble_core.config.methods import METHODS
from marble_core.config.pipeline_parameters import KEYS, descriptions
from marble_core.config.reference import as_markdown, json_schema
from marble_core.config.schema import RunConfig
from marble_core.config.template import starter
from marble_core.types import MarbleError
from paths import ROOT


def test_the_page_of_all_settings_is_in_step_with_the_fields() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == as_markdown(), "python -m marble_core.config.reference writes it anew"
    flat = {
        key.rpartition(".")[2] for key in load_config("demo").flat() if not key.startswith(("rewards.", "evaluation.rewards."))
    }
    named = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    named |= {line.split()[1].rstrip(":").rpartition(".")[2] for line in page.splitlines() if line.startswith("## ")}
    assert flat - named <= {"reward_names", "general", "ocr", "geneval"}
    assert "| `lr` | number above 0 | `0.0003` | Learning rate of AdamW. [N] |" in page


@pytest.mark.parametrize("preset", presets())
def test_presets_keep_to_the_json_schema(preset: str) -> None:
    checker = jsonschema.Draft202012Validator(json_schema())
    text = (ROOT / "marble_core/config/presets" / f"{preset}.yaml").read_text(encoding="utf-8")
    checker.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": {"steps": 0}},
        {"train": {"stepz": 3}},
        {"model": {"precision": "fp8"}},
        {"data": {"shares": {"ocr": 0}}},
        {"optimizer": {"lr": "high"}},
    ],
)
def test_what_the_json_schema_refuses_loading_refuses_too(wrong: dict) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json_schema()).validate(wrong)
    ((section, value),) = wrong.items()
    with pytest.raises(MarbleError):
        load_config("demo", overrides=[f"{section}={json.dumps(value)}"])


def test_a_source_that_is_null_is_left_out_by_both() -> None:
    tree = {"data": {"train": {"general": None, "poems": "p.txt"}}}
    jsonschema.Draft202012Validator(json_schema()).validate(tree)
    assert "general" not in load_config("demo", overrides=[f"data={json.dumps(tree['data'])}", "rollout.prompts=36"]).data.train


def every_field(cls: type[BaseModel], name: str = "") -> dict[str, FieldInfo]:
    """Of a section and those in it, by dotted name; what holds a list of sections counts them in."""
    found = {}
    for key, field in cls.model_fields.items():
        found[f"{name}{key}"] = field
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found |= every_field(inner, f"{name}{key}.")
    return found


def test_no_setting_lacks_a_description_with_its_source() -> None:
    fields = every_field(RunConfig)
    assert len(fields) > 120 and "evaluation.roles.pairs" in fields and "balance.stages.steps" in fields
    values = {name: field for name, field in fields.items() if not any(other.startswith(f"{name}.") for other in fields)}
    wrong = [name for name, field in values.items() if not re.search(r"\w.*\[[PCNO]\]", field.description or "")]
    assert not wrong
    assert not [name for name, field in fields.items() if not field.description]


def test_what_marble_init_writes_and_the_pipelines_form_says_are_the_fields_own_words() -> None:
    fields = every_field(RunConfig)
    for line in starter("demo").splitlines():
        key, _, said = line.partition("  # ")
        if said:
            assert any(f.description == said for n, f in fields.items() if n.endswith(key.partition(":")[0].strip())), line
    for parameter, key in KEYS.items():
        assert descriptions()[parameter] == fields[key].description.rpartition(" [")[0], parameter


def test_every_method_is_in_the_one_table_and_in_the_document() -> None:
    page = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
    for name, method in METHODS.items():
        text = f"{name}:ocr" if method.of else name
        stages = ({"rewards": ("ocr",), "steps": 4},) if name == "sequential" else ()
        config = BalanceConfig(method=text, stages=stages)
        balancer = make_balancer(config, ("ocr", "hpsv2"), 4)
        assert balancer.mixing == method.mixing and config.solves == method.solves == balancer.needs_gram(0), name
        assert f"`{name}" in page, name
