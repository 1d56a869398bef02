"""The gate's scenarios: each ends as it should, with the numbers in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from marble_core.config.loading import load_config
from marble_core.config.schema import RegistryConfig
from marble_core.evaluation.gate import decide
from marble_core.evaluation.results import Alarm, Champion, Diversity, Estimate, Evaluation, RewardResult, Versus
from marble_core.report.table import conditions
from marble_core.types import MarbleError
from report_builders import a_variant

GATE = RegistryConfig(margin=0.1)
FIRST = "The registered model marble has no champion yet, so the base is what counts."
CLEAR, UNCLEAR = Estimate(0.2, 0.1, 0.3), Estimate(0.02, -0.01, 0.05)
Numbers = tuple[float, float, float]


def against_base(gain: Estimate, missing: tuple[str, ...] = (), **differences: Numbers) -> Evaluation:
    """A first model, whose base has mean 0.5 and std 0.4 in every reward."""
    rewards = {n: RewardResult(96, 0.5, 0.5 + d[0], Estimate(*d), base_std=0.4, win_rate=0.5) for n, d in differences.items()}
    return Evaluation(rewards, {}, gain, missing, no_champion=FIRST)


def against_champion(gain: Estimate, **differences: Numbers) -> Evaluation:
    """A model that is far better than the base in every reward, and differs so from the champion, version 3."""
    first = against_base(Estimate(0.9, 0.8, 1.0), **dict.fromkeys(differences, (0.4, 0.3, 0.5)))
    rewards = {n: Versus(0.9 - d[0], Estimate(*d), win_rate=0.5) for n, d in differences.items()}
    return replace(first, champion=Champion(rewards, {}, gain), champion_version="3", no_champion="")


def held_out(evaluation: Evaluation, name: str) -> Evaluation:
    """The same, one of whose rewards was not trained on."""
    rest = {n: r for n, r in evaluation.rewards.items() if n != name}
    return replace(evaluation, rewards=rest, held_out={name: evaluation.rewards[name]})


BETTER = against_base(CLEAR, geneval=(0.2, 0.1, 0.3), clipscore=(0.0, -0.01, 0.01))
WORSE = against_base(CLEAR, geneval=(0.4, 0.3, 0.5), clipscore=(-0.08, -0.12, -0.05))


@pytest.mark.parametrize(
    ("given", "verdict", "says"),
    [
        (against_champion(CLEAR, geneval=(0.2, 0.1, 0.3)), "promoted", "better than the champion: geneval +0.200 (+0.100 to"),
        (against_champion(CLEAR, geneval=(0.2, 0.1, 0.3)), "promoted", "gain over the champion, version 3, is +0.200 (+0.100"),
        (BETTER, "promoted", "Shown to be better than the base: geneval +0.200 (+0.100 to +0.300)."),
        (BETTER, "promoted", FIRST),
        (WORSE, "worse", "clipscore is worse than the base by -0.080 (-0.120 to -0.050), an interval that lies wholly below -0.040"),
        (held_out(WORSE, "clipscore"), "worse", "clipscore is worse than the base"),
        (against_champion(CLEAR, ocr=(-0.08, -0.12, -0.05)), "worse", "ocr is worse than the champion by -0.080"),
        (against_base(UNCLEAR, ocr=(0.01, -0.02, 0.04)), "no gain", "base is +0.020 (-0.010 to +0.050) base standard deviations, an"),
        (against_champion(UNCLEAR, ocr=(0.01, -0.02, 0.04)), "no gain", "champion, version 3, is +0.020 (-0.010 to +0.050)"),
        (against_base(CLEAR, ocr=(-0.05, -0.09, -0.03)), "promoted", "not excluded either, where an interval reaches below the margin: ocr -0.050"),
        (against_base(CLEAR, ("ocr",), geneval=(0.2, 0.1, 0.3)), "not measured", "ocr applies to no held-out prompt"),
        (against_base(Estimate(0.0, 0.0, 0.0), ocr=(0.0, 0.0, 0.0)), "no gain", "does not lie above 0"),
    ],
    ids=[
        "better", "better, over whom", "better than the base", "first model", "worse on one", "worse on one not trained on",
        "worse than the champion only", "noise only", "noise over the champion", "harm not excluded", "missing metric",
        "a LoRA that does nothing",
    ],
)  # fmt: skip
def test_the_gate_decides_with_the_numbers_in_words(given: Evaluation, verdict: str, says: str) -> None:
    decision = decide(given, GATE)
    assert decision.verdict == verdict and decision.promote == (verdict == "promoted")
    assert any(says in reason for reason in decision.reasons), decision.reasons
    assert all(reason.endswith(".") for reason in decision.reasons)


@pytest.mark.parametrize(
    ("floors", "says"),
    [
        (("geneval >= 0.7",), None),
        (("geneval >= 0.71",), "The floor geneval >= 0.71 is not met: geneval is 0.700."),
        (("clipscore >= 0.1", "geneval + clipscore >= 1.3"), "not met: geneval is 0.700, clipscore is 0.500."),
        (("clipscore <= 0.4",), "The floor clipscore <= 0.4 is not met: clipscore is 0.500."),
    ],
)
def test_a_floor_is_held_against_the_trained_models_mean(floors: tuple[str, ...], says: str | None) -> None:
    decision = decide(BETTER, RegistryConfig(floors=floors))
    assert decision.verdict == ("below a floor" if says else "promoted")
    assert says is None or says in decision.reasons[0]


def test_a_floor_that_names_no_measured_reward_is_refused_with_the_configuration() -> None:
    with pytest.raises(MarbleError, match=r"The floor 'hpsv2 >= 0\.2' names the reward 'hpsv2', but the rewards are clipscore"):
        load_config("demo", overrides=['registry.floors=["hpsv2 >= 0.2"]'])
    overrides = ['registry.floors=["sharp >= 0.2"]', "evaluation.rewards=[{name: sharp, scorer: 'my.own:Sharp'}]"]
    assert load_config("demo", overrides=overrides).registry.floors == ("sharp >= 0.2",)


def test_the_margin_is_measured_in_base_standard_deviations() -> None:
    assert decide(WORSE, RegistryConfig(margin=0.2)).promote
    assert not decide(WORSE, RegistryConfig(margin=0.12)).promote
    assert RegistryConfig().margin == 0.02


def test_an_alarm_is_said_and_does_not_decide() -> None:
    alarmed = replace(BETTER, alarms=(Alarm("mode collapse", "All pictures are one."),))
    assert decide(alarmed, GATE).promote and "Alarm, mode collapse: All pictures are one." in decide(alarmed, GATE).reasons


def beside_guidance(lead: Numbers, change: Numbers, loss: float = -0.1, strength: float = 1.0) -> Evaluation:
    """A model that gains, with two guided bases of which the second gains more; it is ahead of that one by ``lead``."""
    weak = replace(a_variant(1.5, 1, 0.05, -0.1, model="base"), lead_gain=CLEAR, lead_diversity=Estimate(0.0, -0.1, 0.1))
    best = replace(a_variant(3, 1, 0.15, -0.3, model="base"), lead_gain=Estimate(*lead), lead_diversity=Estimate(*change))
    stronger = a_variant(4.5, 1, 0.9, -0.6)
    lost = Diversity(96, 4, 1.0, 1 + loss, Estimate(loss, loss - 0.1, loss + 0.1))
    return replace(BETTER, variants=(weak, best, stronger), diversity=lost, strength=strength)


BEATS = RegistryConfig(margin=0.1, beat_guidance=True)
AHEAD, EQUAL = (0.1, 0.05, 0.15), (0.05, -0.1, 0.2)


@pytest.mark.parametrize(
    ("given", "gate", "verdict", "says"),
    [
        (beside_guidance(AHEAD, EQUAL), BEATS, "promoted", "ahead of the best base under guidance, at guidance 3, by +0.100"),
        (beside_guidance((0.05, -0.01, 0.1), EQUAL), BEATS, "no better than guidance", "at guidance 3, by +0.050 (-0.010 to +0.100)"),
        (beside_guidance(AHEAD, (-0.2, -0.3, -0.1)), BEATS, "no better than guidance", "change of diversity of -20 (-30 to -10) %"),
        (beside_guidance((0.05, -0.01, 0.1), EQUAL), GATE, "promoted", "Shown to be better"),
        (BETTER, BEATS, "not measured", "Diversity was not measured"),
        (replace(beside_guidance(AHEAD, EQUAL), variants=()), BEATS, "not measured", "No base under guidance was measured"),
        (replace(beside_guidance(AHEAD, EQUAL), variants=(), no_guidance="it has none"), BEATS, "promoted", "Shown to be better"),
        (beside_guidance(AHEAD, EQUAL, -0.3), RegistryConfig(diversity_loss=0.2), "less diverse", "changed by -30 (-40 to -20) %, a loss above 20 %"),
        (beside_guidance(AHEAD, EQUAL, -0.1, 0.5), RegistryConfig(diversity_loss=0.2), "promoted", "LoRA at strength 0.5, the strongest that"),
    ],
)  # fmt: skip
def test_the_gate_may_ask_for_more_than_guidance_brings_and_for_diversity(
    given: Evaluation, gate: RegistryConfig, verdict: str, says: str
) -> None:
    decision = decide(given, gate)
    assert decision.verdict == verdict and decision.promote == (verdict == "promoted")
    assert any(says in reason for reason in decision.reasons), decision.reasons
    asked = {condition.asked: condition.met for condition in conditions(given, [], gate)}
    if verdict == "no better than guidance":
        assert not asked["Better than the best guided base at no less diversity"]
    if verdict == "less diverse":
        assert not asked["At most 20 % of the base's diversity is lost"]
    if verdict == "promoted" and gate is BEATS and not given.no_guidance:
        assert all(asked.values())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["registry.beat_guidance=true"], "needs a guided base to beat"),
        (["registry.diversity_loss=0.2", "evaluation.diversity_prompts=0"], "registry.diversity_loss is about diversity"),
    ],
)
def test_a_gate_that_asks_for_what_is_not_measured_is_refused_before_the_run(overrides: list[str], says: str) -> None:
    with pytest.raises(MarbleError, match=says):
        load_config("demo", overrides=overrides)
