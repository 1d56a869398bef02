"""An evaluation goes on where a reward fails: what it can compare it compares, in pairs, and it says what it could not."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marble_core.config.loading import load_config
from marble_core.config.schema import RegistryConfig, RewardConfig
from marble_core.evaluation import lacking
from marble_core.evaluation.gate import decide
from marble_core.evaluation.results import Evaluation, Lacking
from marble_core.evaluation.run import run_evaluation
from marble_core.evaluation.shared_roles import Sampled, SharedRoles
from marble_core.evaluation.statistics import compare
from marble_core.models.policy import Policy
from marble_core.types import MarbleError, Prompt, RewardTable

PROMPTS = [Prompt(str(i), "general") for i in range(30)]
LOST = {"base": [3], "champion": [4, 20], "trained": [3, 7]}
REWARDS = [RewardConfig(name="a", max_missing=0.1), RewardConfig(name="b")]


def tables(lost: dict[str, list[int]]) -> dict[str, RewardTable]:
    found = {}
    for n, (role, rows) in enumerate(lost.items()):
        values = np.random.default_rng(n).normal(n / 2, 1, (len(PROMPTS), 3))
        values[rows, 0] = np.nan
        side = {"a/more": np.where(np.isin(np.arange(len(PROMPTS)), rows), np.nan, values[:, 2])}
        found[role] = RewardTable(("a", "b"), values[:, :2], side, dict.fromkeys([(i, 0) for i in rows], "reset by peer"))
    return found


def compared(found: dict[str, RewardTable], prompts: list[Prompt] = PROMPTS) -> Evaluation:
    return compare(found["base"], found["trained"], prompts, 200, 0, found["champion"])


def test_a_prompt_for_which_a_model_lacks_a_value_is_left_out_of_that_reward_alone() -> None:
    found = compared(tables(LOST))
    have = np.array([i for i in range(30) if i not in {3, 4, 7, 20}])
    whole = tables({role: [] for role in LOST})
    b, c, t = (whole[role].R_NK[:, 0] for role in ("base", "champion", "trained"))
    r, over = found.rewards["a"], found.champion
    assert over is not None and r.n == 26 and found.rewards["b"].n == 30 and found.side["a/more"].n == 26
    np.testing.assert_allclose([r.base, r.trained, r.base_std], [b[have].mean(), t[have].mean(), b[have].std()])
    np.testing.assert_allclose(over.rewards["a"].mean, c[have].mean())
    assert compared(whole).rewards["b"] == found.rewards["b"]
    np.testing.assert_allclose(found.mean_gain.mean, np.mean([x.difference.mean / x.base_std for x in found.rewards.values()]))


def test_what_is_lacking_is_counted_and_above_the_share_an_alarm_that_no_gate_lets_through() -> None:
    found = compared(tables(LOST))
    assert found.lacking == {"a": Lacking(30, 4, {"base": 1, "trained": 2, "champion": 2}, "reset by peer")}
    assert found.notes[-1] == (
        "a has no value for some images (base 1, trained 2, champion 2; most often because reset by peer), so it is compared without "
        "4 of its 30 prompts."
    )
    (alarm,) = lacking.alarms(found.lacking, REWARDS)
    assert alarm.kind == "missing values" and alarm.text.startswith("a could be compared on only 26 of its 30 prompts")
    assert not list(lacking.alarms(found.lacking, [REWARDS[0].model_copy(update={"max_missing": 0.2})]))
    gate = RegistryConfig(margin=9.0)
    assert decide(found, gate).promote
    refused = decide(replace(found, alarms=(alarm,)), gate)
    assert (refused.verdict, refused.reasons[0]) == ("not measured", alarm.text)


def test_a_reward_without_any_value_is_not_measured_and_the_others_are() -> None:
    found = compared(tables({role: list(range(30)) if role == "trained" else [] for role in LOST}))
    assert found.missing == ("a",) and found.rewards.keys() == {"b"} and found.lacking["a"].pairs == 30
    assert not any("applies to no held-out prompt" in note for note in found.notes)
    none = tables({role: list(range(30)) for role in LOST})
    alone = {role: RewardTable(("a",), table.R_NK[:, :1], {}, table.missing) for role, table in none.items()}
    with pytest.raises(MarbleError, match=r"No reward has a value for any held-out prompt: a has no value .* reset by peer"):
        compared(alone)


def test_a_role_that_lacks_values_is_sampled_again_by_the_next_evaluation(tmp_path: Path) -> None:
    tried = []

    def sample() -> Sampled:
        tried.append(1)
        return Sampled(tables(LOST if len(tried) == 1 else {"base": []})["base"], np.zeros(0))

    shared = SharedRoles(tmp_path / "roles")
    assert [bool(shared.get("base", {}, tmp_path, sample).table.missing) for _ in range(3)] == [True, False, False]
    assert len(tried) == 2


class Brightness:
    """A user's scorer. ``how`` it fails: for the prompt "two" alone, for the whole of a later call, or by never ending that call."""

    value_range = (0.0, 1.0)
    over = threading.Event()

    def __init__(self, how: str) -> None:
        self.how, self.calls = how, 0

    def applies(self, prompt: Prompt) -> bool:
        return True

    def self_check(self) -> None:
        pass

    def score(self, images_NHWC: np.ndarray, prompts: list[Prompt]) -> Any:
        self.calls += 1
        if self.how == "one" and any(prompt.text == "two" for prompt in prompts):
            raise OSError("reset by peer")
        if self.how == "key" and self.calls > 1:
            raise MarbleError("The key has expired.")
        if self.how == "hangs" and self.calls > 1:
            self.over.wait(60)
        values = images_NHWC.mean((1, 2, 3)) / 255
        return np.where([prompt.text == "three" and self.how == "infinite" for prompt in prompts], np.inf, values)


def test_an_evaluation_whose_reward_fails_ends_with_all_that_the_others_measured(tmp_path: Path) -> None:
    how = ("one", "key", "hangs", "infinite")
    rewards = [
        {"name": name, "scorer": f"{__name__}:Brightness", "options": {"how": name}, "timeout": 5} for name in ("fine", *how)
    ]
    rewards[3]["timeout"] = 0.5
    overrides = ["evaluation.steps=1", "evaluation.batch_size=2", "evaluation.resamples=100", "lora.rank=2"]
    config = load_config("demo", overrides=[*overrides, f"rewards={json.dumps(rewards)}"])
    policy = Policy.load(config)
    policy.add_trainable(config)
    policy.save_adapter(tmp_path / "lora", policy.parameters_of("default"))
    prompts = [Prompt(text, "general") for text in ("one", "two", "three", "four")]
    try:
        found = run_evaluation(config, prompts, tmp_path / "lora", tmp_path / "out")
    finally:
        Brightness.over.set()
    assert found.rewards["fine"].n == 4 and found.rewards["one"].n == 3 and found.rewards["infinite"].n == 3
    why = {name: (lost.by_role, lost.why) for name, lost in found.lacking.items()}
    assert why == {
        "one": ({"base": 1, "trained": 1}, "OSError: reset by peer"),
        "key": ({"base": 2, "trained": 4}, "The key has expired"),
        "hangs": ({"base": 2, "trained": 4}, "it still hangs in an earlier call"),
        "infinite": ({"base": 1, "trained": 1}, "it is not finite"),
    }
    assert {alarm.text.split()[0] for alarm in found.alarms} == {"key", "hangs"}, "one image alone is never too many"
    rows = [json.loads(line) for line in (tmp_path / "out" / "images" / "scores.jsonl").read_text().splitlines()]
    assert rows[1]["missing"]["base"]["one"] == "OSError: reset by peer" and "one" not in rows[1]["base"]
    assert len(rows) == 4 and all("fine" in row[role] for row in rows for role in ("base", "trained"))
