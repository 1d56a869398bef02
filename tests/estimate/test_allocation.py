"""Where images and timesteps are best spent: against a simulation of the noise, and of its price."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from marble_core.cli import app
from marble_core.config.loading import load_config
from marble_core.estimate.allocation import Components, allocate, components
from marble_core.estimate.sizes import sizes_of
from marble_core.estimate.work import flop_of_step, timestep_forwards, work_of

MARBLE = ["balance.method=marble", "balance.observe=0"]
SIGNAL = {
    "names": ["clipscore", "ocr"],
    "bank": {"configuration": {"rollout.prompts": "24", "rollout.images_per_prompt": "8", "loss.timesteps": "4"}},
    "one_step": {
        "between_prompts": {"value": [0.1, -0.2]},
        "between_images": {"value": [0.8, None]},
        "t_eps": {"value": [1.7, 40.0]},
    },
}


def test_components_are_those_of_one_prompt_one_image_and_one_draw():
    """A mean over M prompts, G images each and T draws each of three independent noises has the variance that the bank states."""
    own = components(SIGNAL)["clipscore"]
    rng = np.random.default_rng(0)
    M, G, T = 6, 4, 3
    steps = [
        (
            rng.normal(0, own.prompt**0.5, (M, 1, 1))
            + rng.normal(0, own.image**0.5, (M, G, 1))
            + rng.normal(0, own.draw**0.5, (M, G, T))
        ).mean()
        for _ in range(4000)
    ]
    assert np.var(steps) == pytest.approx(own.noise(M, M * G, T), rel=0.1)
    assert own.noise(24, 192, 4) == pytest.approx(0.1 + 0.8 + 1.7)
    assert list(components(SIGNAL)) == ["clipscore"], "of ocr it is not known what images add"


def test_the_timesteps_are_the_cheapest_way_to_the_same_noise_and_the_images_cost_the_same():
    config = load_config("demo", overrides=[*MARBLE, "rollout.steps=20", "loss.timesteps=2"])
    own = components(SIGNAL)["clipscore"]
    found = allocate(own, config)
    c = timestep_forwards(config)
    now = 288 * (20 + 2 * c)
    assert found.images * (20 + found.timesteps * c) == pytest.approx(now, rel=0.01)
    by_hand = {T: own.noise(36, now / (20 + T * c), T) for T in range(1, 21)}
    assert min(by_hand, key=by_hand.get) == found.timesteps
    assert found.noise == pytest.approx(by_hand[found.timesteps] / own.noise(36, 288, 2), rel=0.01)
    exact = (own.draw / own.image * 20 / c) ** 0.5
    assert abs(found.timesteps - exact) <= 1
    half = own.prompt * 8 + own.image + own.draw / found.timesteps
    assert found.images_for_half == int(np.ceil(half))
    assert allocate(Components(0, 1, 1e9), config).timesteps == 20 and allocate(Components(0, 1e9, 1), config).timesteps == 1


def test_a_timesteps_cost_is_the_estimates_own():
    config = load_config("demo", overrides=MARBLE)
    one, two = (load_config("demo", overrides=[*MARBLE, f"loss.timesteps={T}"]) for T in (1, 2))
    sizes = sizes_of(config.model)
    flop = [flop_of_step(c, sizes, True) for c in (one, two)]
    assert (flop[1] - flop[0]) / (flop[0] - (flop[1] - flop[0])) == pytest.approx(
        timestep_forwards(config) / config.rollout.steps
    )
    assert work_of(config, sizes).flop == flop_of_step(config, sizes, True)


def test_all_gradients_for_the_log_cost_a_balanced_training_pass_on_each_observed_step():
    def flop(*overrides: str) -> float:
        config = load_config("demo", overrides=list(overrides))
        return work_of(config, sizes_of(config.model)).flop

    none, tenth, every = (flop("balance.method=equal", f"balance.observe={n}") for n in (0, 10, 1))
    balanced = 4 * (flop(*MARBLE, "loss.timesteps=5") - flop(*MARBLE, "loss.timesteps=4"))
    assert every - none == pytest.approx(balanced) and tenth - none == pytest.approx(balanced / 10)


def test_check_prints_the_allocation_of_a_bank_and_refuses_what_is_none(tmp_path):
    (tmp_path / "signal.json").write_text(json.dumps(SIGNAL))
    said = CliRunner().invoke(app, ["check", "--estimate", "--signal", str(tmp_path / "signal.json")])
    assert said.exit_code == 0 and "T*" in said.output and "clipscore" in said.output.partition("T*")[2]
    assert "ocr" not in said.output.partition("T*")[2]
    (tmp_path / "other.json").write_text('{"names": []}')
    for args, says in (
        ([str(tmp_path / "other.json")], "is no signal.json"),
        ([str(tmp_path / "signal.json"), "--set", "rewards=[{name: compressibility}]"], "says nothing of compressibility"),
    ):
        refused = CliRunner().invoke(app, ["check", "--estimate", "--signal", *args])
        assert refused.exit_code != 0 and says in str(refused.exception)
