"""The further roles: which there are, what is said of them, and that what is free of training is sampled once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from marble_core.config.loading import load_config
from marble_core.config.roles import RolesConfig
from marble_core.config.schema import RunConfig
from marble_core.evaluation.evaluator import Evaluator
from marble_core.evaluation.results import Evaluation
from marble_core.evaluation.roles import BASE, TRAINED, Role, variants_of
from marble_core.evaluation.run import run_evaluation
from marble_core.evaluation.shared_roles import Sampled, SharedRoles
from marble_core.evaluation.variants import Measured, recommended
from marble_core.models.adapter_file import fold
from marble_core.models.policy import Policy
from marble_core.rewards.registry import load_scorers
from marble_core.tracking.past_runs import evaluation_metrics
from marble_core.types import MarbleError, Prompt, RewardTable
from report_builders import a_variant, with_variants

ROLES = "evaluation.roles={base_guidance: [1, 1.5, 3], trained_guidance: [1, 3], strengths: [0.5, 1]}"
PROMPTS = [Prompt("a red circle", "general"), Prompt("a blue square", "general"), Prompt("two green stripes", "geneval")]


def config(*overrides: str) -> RunConfig:
    tiny = ["evaluation.steps=2", "evaluation.batch_size=2", "evaluation.resamples=100", "lora.rank=2"]
    clip = "rewards=[{name: clipscore, options: {checkpoint: 'demo://rewards/clip'}}]"
    return load_config("demo", overrides=[*tiny, "evaluation.diversity_images=2", clip, *overrides])


def saved_lora(of: RunConfig, directory: Path, scale: float) -> Path:
    policy = Policy.load(of)
    policy.add_trainable(of)
    weights = {n: p * 0 + scale if "lora_B" in n else p for n, p in policy.parameters_of("default").items()}
    policy.save_adapter(directory, weights)
    return directory


def test_the_roles_are_those_asked_for_each_once_and_guidance_or_strength_of_one_is_none() -> None:
    asked = RolesConfig(base_guidance=(1, 1.5, 2, 2), trained_guidance=(3, 1), strengths=(0.5, 1, 1.25))
    names = ["base-g1.5", "base-g2", "trained-g3", "trained-s0.5", "trained-s1.25"]
    assert [role.name for role in variants_of(asked)] == names
    paired = variants_of(asked.model_copy(update={"pairs": True}))
    assert [role.name for role in paired[3:]] == ["trained-s0.5", "trained-s0.5-g3", "trained-s1.25", "trained-s1.25-g3"]
    assert paired[4] == Role("trained-s0.5-g3", "default", 3, 0.5)
    assert [role.name for role in variants_of(asked, "it has none")] == ["trained-s0.5", "trained-s1.25"]
    assert variants_of(RolesConfig()) == []
    for wrong in ("base_guidance: [0.5]", "strengths: [0]", "strengths: [.nan]"):
        with pytest.raises(MarbleError, match=r"evaluation\.roles"):
            config(f"evaluation.roles={{{wrong}}}")


def test_what_is_said_of_a_variant_is_the_plain_paired_statistics() -> None:
    prompts = [Prompt(str(i), source) for i, source in enumerate(("general",) * 30 + ("ocr",) * 30)]
    rng = np.random.default_rng(0)
    base_NK, d_NK, t_NK = rng.normal(size=(60, 2)), rng.normal(0.2, 0.5, (60, 2)), rng.normal(0.4, 0.5, (60, 2))
    base_NK[:30, 1] = np.nan
    tables = {
        name: RewardTable(("clipscore", "held"), r_NK)
        for name, r_NK in (("base", base_NK), ("base-g2", base_NK + d_NK), ("trained", base_NK + t_NK))
    }
    distances = {"base": np.full(10, 0.5), "base-g2": np.full(10, 0.4), "trained": np.full(10, 0.3)}
    measured = Measured(prompts, tables, prompts[:5] + prompts[-5:], distances, ("clipscore",), 4, 200, 0)
    (v,) = measured.variants([Role("base-g2", "off", 2.0)])
    assert (v.name, v.model, v.guidance, v.strength) == ("base-g2", "base", 2.0, 1.0)
    assert v.rewards["held"].n == 30 and v.rewards["held"].difference.mean == pytest.approx(d_NK[30:, 1].mean())
    assert v.mean_gain.mean == pytest.approx(d_NK[:, 0].mean() / base_NK[:, 0].std()), "held was not trained on"
    assert v.mean_gain.low < v.mean_gain.mean < v.mean_gain.high
    assert v.lead["held"].mean == pytest.approx((t_NK - d_NK)[30:, 1].mean())
    assert v.lead_gain.mean == pytest.approx((t_NK - d_NK)[:, 0].mean() / base_NK[:, 0].std())
    assert v.together.all_rise.mean == pytest.approx((d_NK[:, 0] > 0).mean())
    assert v.diversity is not None and v.diversity.change.mean == pytest.approx(-0.2)
    assert v.lead_diversity is not None and v.lead_diversity.mean == pytest.approx(-0.25)


def test_the_guided_base_is_sampled_once_for_all_trainings_and_a_lora_of_zeros_is_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[str] = []
    score = Evaluator.score
    monkeypatch.setattr(Evaluator, "score", lambda self, role, policy: sampled.append(role.name) or score(self, role, policy))
    asked, shared = config(ROLES), SharedRoles(tmp_path / "roles")
    zero = run_evaluation(asked, PROMPTS, saved_lora(asked, tmp_path / "zero", 0.0), tmp_path / "a", shared=shared)
    assert sampled == ["base", "trained", "base-g1.5", "base-g3", "trained-g3", "trained-s0.5"]
    del sampled[:]
    run_evaluation(asked, PROMPTS, saved_lora(asked, tmp_path / "other", 0.2), tmp_path / "b", shared=shared)
    run_evaluation(config(), PROMPTS, tmp_path / "other", tmp_path / "c", shared=shared)
    assert sampled == ["trained", "trained-g3", "trained-s0.5", "trained"], "the base is free whatever else is asked for"

    a, b, c = (
        [json.loads(line) for line in (tmp_path / place / "images" / "scores.jsonl").read_text().splitlines()]
        for place in ("a", "b", "c")
    )
    for one, other, third in zip(a, b, c, strict=True):
        assert one["trained-g3"] == one["base-g3"] != one["base-g1.5"] and one["trained-s0.5"] == one["trained"] == one["base"]
        assert (
            len({json.dumps(other[role]) for role in ("base", "base-g1.5", "base-g3", "trained", "trained-g3", "trained-s0.5")})
            == 6
        )
        assert other["base-g3"] == one["base-g3"] and other["trained"] == third["trained"]
        assert one["distances"]["trained-g3"] == one["distances"]["base-g3"] != one["distances"]["base"]
        assert set(other["pictures"]) == {"base", "trained"}
    lead = {v.name: v.lead_gain.mean for v in zero.variants}
    assert lead["trained-s0.5"] == 0 != lead["base-g3"] and lead["base-g3"] == -zero.variants[1].mean_gain.mean
    assert Evaluation.load(tmp_path / "a" / "evaluation.json") == zero
    metrics = evaluation_metrics(zero)
    assert {
        "evaluation/mean_gain/base-g3",
        "evaluation/diversity_change/base-g3",
        "evaluation/diversity_change/general",
    } <= set(metrics)
    assert zero.together is not None and zero.together.all_rise.mean == 0 and not zero.no_guidance


def test_a_family_without_guidance_says_so_and_is_evaluated_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marble_core.models.sd3.SD3.no_guidance", "it has been distilled")
    asked = config(ROLES)
    found = run_evaluation(asked, PROMPTS, saved_lora(asked, tmp_path / "lora", 0.2), tmp_path / "a")
    assert [v.name for v in found.variants] == ["trained-s0.5"]
    assert found.no_guidance == "it has been distilled"
    assert "No model was evaluated under guidance: it has been distilled." in found.notes


def test_what_is_recommended_keeps_four_fifths_of_the_diversity_harms_nothing_and_gains_most() -> None:
    weak, guided = a_variant(1, 0.5, 0.15, -0.1), a_variant(3, 1, 0.9, -0.5)
    chosen = recommended(with_variants(-0.3, weak, guided))
    assert (chosen.guidance, chosen.strength) == (1, 0.5), "the plain one loses more than a fifth, and so does the guided one"
    plain = recommended(with_variants(-0.1, weak, guided))
    assert (plain.guidance, plain.strength, plain.mean_gain.mean) == (1, 1, 0.2)
    harmless = recommended(with_variants(-0.1, a_variant(1.5, 1, 0.5, -0.1, fell=True), a_variant(1, 1.25, 0.3, -0.19)))
    assert (harmless.guidance, harmless.strength) == (1, 1.25)
    least = recommended(with_variants(-0.4, a_variant(1, 0.5, 0.1, -0.3), guided))
    assert (least.strength, least.keeps) == (0.5, False)


@pytest.mark.parametrize(("limit", "chosen"), [(0.35, 1.25), (0.25, 1.0), (0.12, 0.5), (0.01, 0.5)])
def test_the_strongest_lora_within_the_limit_is_the_trained_one_and_its_images_are_the_trained_ones(
    tmp_path: Path, limit: float, chosen: float
) -> None:
    """Diversity falls by a fifth of the strength squared; the base's rewards are 0, and each role's are its strength."""
    asked = config("evaluation.roles={strengths: [0.5, 1.25], trained_guidance: [3]}", f"registry.diversity_loss={limit}")
    work = Evaluator(
        asked, PROMPTS, load_scorers(asked.measured), tmp_path, [BASE, TRAINED], variants_of(asked.evaluation.roles)
    )
    found = {}
    for role in work.all_roles:
        strength = 0.0 if role == BASE else role.strength
        table = RewardTable(("clipscore",), np.arange(3.0)[:, None] + strength)
        found[role.name] = Sampled(table, np.full(3, 1 - 0.2 * strength**2))
        (tmp_path / f"{role.name}-000.png").write_text(role.name)
        (tmp_path / f"{role.name}-001.png").write_text(role.name)
        (tmp_path / f"{role.name}-002.png").write_text(role.name)
    evaluation = work.evaluation(found)
    assert evaluation.strength == chosen
    assert evaluation.rewards["clipscore"].difference.mean == pytest.approx(chosen)
    assert evaluation.diversity is not None and evaluation.diversity.change.mean == pytest.approx(-0.2 * chosen**2)
    strengths = {v.strength: v.rewards["clipscore"].difference.mean for v in evaluation.variants if v.guidance == 1}
    assert strengths == pytest.approx({s: s for s in (0.5, 1.0, 1.25) if s != chosen})
    own = "trained" if chosen == 1 else f"trained-s{chosen:g}"
    assert (tmp_path / "trained-002.png").read_text() == own
    assert chosen == 1 or (tmp_path / "trained-s1-002.png").read_text() == "trained"
    if chosen == 1.25:
        assert recommended(evaluation).strength in (0.5, 1.0, 1.25)


def test_a_strength_that_is_folded_into_the_weights_is_that_of_set_adapters(tmp_path: Path) -> None:
    asked = config()
    policy = Policy.load(asked)
    policy.load_adapter(saved_lora(asked, tmp_path / "whole", 0.2))
    policy.load_adapter(fold(tmp_path / "whole", 0.75, tmp_path / "folded"), name="folded")
    x, t = torch.randn(2, *policy.model.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 0.9])
    told = policy.model.encode(["a red circle", "a blue square"])
    with torch.no_grad():
        with policy.using("default") as model:
            whole = model.velocity(x, t, told)
        with policy.using("default", 0.75) as model:
            scaled = model.velocity(x, t, told)
        with policy.using("folded") as model:
            folded = model.velocity(x, t, told)
    assert (folded - scaled).abs().max() < 1e-5 < (folded - whole).abs().max()
