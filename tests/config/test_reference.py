"""The reference of all settings is the schema's, and what it says of a value is what loading does."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

from marble_core.config.loading import load_config, presets
from marble_core.config.reference import as_markdown, json_schema
from marble_core.config.schema import RunConfig
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
    assert "| `lr` | number above 0 | `0.0003` | [N] |" in page


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


def test_every_section_says_something_of_its_fields() -> None:
    schema = json_schema()
    for field in RunConfig.model_fields.values():
        name = getattr(field.annotation, "__name__", "")
        if name in schema["$defs"]:
            assert any("description" in own for own in schema["$defs"][name]["properties"].values()), name
