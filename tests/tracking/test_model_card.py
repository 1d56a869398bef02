"""The card recommends how the model is to be sampled, of what was measured, and its code does just that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from marble_core.config.schema import ModelConfig
from marble_core.evaluation.gate import decide
from marble_core.evaluation.results import Evaluation
from marble_core.tracking.model_card import write_card
from report_builders import a_config, a_variant, with_variants


def card(directory: Path, evaluation: Evaluation, family: str = "sd3") -> str:
    config = a_config()
    chosen = ModelConfig.model_validate(config.model.model_dump() | {"family": family})
    config = config.model_copy(update={"model": chosen})
    write_card(directory, config, evaluation, decide(evaluation, config.registry), directory / "none", "marble", "the-run", {})
    return (directory / "README.md").read_text()


def test_the_card_recommends_a_pair_of_guidance_and_strength_and_its_code_uses_it(tmp_path: Path) -> None:
    base = a_variant(2, 1, 0.9, -0.05, model="base")
    said = card(tmp_path, with_variants(-0.3, base, a_variant(1.5, 0.75, 0.25, -0.15), a_variant(3, 1, 0.9, -0.5)))
    assert "Recommended: guidance 1.5 at strength 0.75, the greatest mean gain of those that keep four fifths" in said
    assert "mean gain +0.250 (+0.150 to +0.350) base standard deviations, diversity -15 % (-25 to -5)" in said
    assert 'pipe.set_adapters(["marble"], [0.75])' in said and "guidance_scale=1.5, num" in said
    assert "| base | 2 |  | +0.900 (+0.800 to +1.000) | -5 % (-15 to +5) |" in said
    assert "96 prompts): 1.000 -> 0.700, a change of -30 % (-40 to -20)." in said


def test_the_card_says_where_no_pair_keeps_the_diversity(tmp_path: Path) -> None:
    said = card(tmp_path, with_variants(-0.5, a_variant(1, 0.5, 0.1, -0.3)))
    assert "guidance 1 at strength 0.5, the one that keeps most diversity, for none keeps four fifths" in said


def test_without_further_roles_the_code_samples_as_the_evaluation_did(tmp_path: Path) -> None:
    plain = with_variants(-0.3)
    assert "Recommended" not in card(tmp_path / "a", plain) and "set_adapters" not in card(tmp_path / "a", plain)
    assert "guidance_scale=1, num" in card(tmp_path / "b", plain)
    flux = replace(plain, settings={**plain.settings, "guidance_scale": 3.5}, no_guidance="it reads its scale")
    said = card(tmp_path / "c", flux)
    assert "guidance_scale=3.5, num" in said and "No guidance: it reads its scale." in said


def test_the_code_for_a_qwen_image_sets_the_guidance_that_its_pipeline_has(tmp_path: Path) -> None:
    said = card(tmp_path, with_variants(-0.3, a_variant(1.5, 0.75, 0.25, -0.15)), "qwen-image")
    assert 'pipe("a red circle", true_cfg_scale=1.5, negative_prompt=" ", num_inference_steps=' in said
