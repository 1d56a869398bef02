"""What Kubeflow's page of several runs shows: a handful of results by names that sort well, and no single batch's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marble_core.evaluation.gate import Decision
from marble_core.tracking.kubeflow_metrics import of_evaluation, of_training
from marble_core.tracking.outcome import Outcome
from report_builders import a_config, an_evaluation, with_champion, write_history


def test_a_training_says_hours_images_steps_and_the_worst_reward_s_honest_cosine(tmp_path: Path) -> None:
    path, config = write_history(tmp_path / "history.jsonl", 9, skipped=(4,)), a_config()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["step"] != 4:
            line["metrics"] |= {"held_out/clipscore": 0.3, "held_out/ocr": 0.01 * line["step"], "held_out/worst": -1.0}
    path.write_text("\n".join(map(json.dumps, lines)))
    found = of_training(tmp_path, config)
    assert list(found) == ["hours", "images", "steps", "worst_honest_cosine"]
    assert found["hours"] == pytest.approx(8 * (5.0 + 15.0) / 3600) and found["steps"] == 8
    assert found["images"] == 8 * config.rollout.prompts * config.rollout.images_per_prompt
    assert found["worst_honest_cosine"] == pytest.approx(0.01 * (sum(range(1, 10)) - 4) / 8), "of ocr, over its eight steps"
    assert of_training(tmp_path / "nothing", config) == {}


def test_an_evaluation_says_the_gain_first_and_each_reward_s_in_standard_deviations() -> None:
    found = of_evaluation(with_champion(an_evaluation()))
    assert sorted(found) == [
        *("gain", "gain/clipscore", "gain/geneval", "gain/ocr", "gain_high", "gain_low", "gain_over_champion", "loss_of_diversity")
    ]  # fmt: skip
    assert (found["gain"], found["gain_low"], found["gain_high"]) == (0.2, 0.1, 0.3)
    assert found["gain/geneval"] == pytest.approx(0.2 / 0.4) and found["loss_of_diversity"] == 0.5


def test_register_says_whether_it_is_champion_and_the_gain_that_decided() -> None:
    decision = Decision(True, "promoted", ())
    first = Outcome("r", "m", decision, an_evaluation(), "1", "champion").metrics
    assert first == {"promoted": 1.0, "gain": 0.2, "gain_low": 0.1}
    second = Outcome("r", "m", decision, with_champion(an_evaluation()), "2", "challenger").metrics
    assert second == {"promoted": 0.0, "gain": 0.1, "gain_low": 0.05}
