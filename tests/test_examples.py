"""The examples do what they show, by scores; README and docs/extending.md quote them, and every public name is documented with an example."""

import ast
import re

import numpy as np
import pytest
import torch

import marble_core
from commands import TINY
from marble_core.checkpoints import CheckpointStore
from marble_core.config.balance import BalanceConfig
from marble_core.config.loading import load_config
from marble_core.evaluation.run import measure
from marble_core.prompts.dataset import prepare_data
from marble_core.rewards.registry import load_scorers
from marble_core.rewards.scoring import score_all
from marble_core.step import optimizer_step
from marble_core.training import loop
from marble_core.types import Prompt
from paths import ROOT

PAGES = "".join((ROOT / page).read_text(encoding="utf-8").replace("](../", "](") for page in ("README.md", "docs/extending.md"))
GENEVAL = "rewards=[{name: geneval, options: {detector: 'marble_core.demo.shapes:ShapesDetector'}}]"
SMALL = [*TINY, "lora.rank=4", "rewards=[{name: compressibility}]"]


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    """As PYTHONPATH=examples does."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def command(title):
    """The last block below a heading of README or docs/extending.md: what one types."""
    below = PAGES.split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```\w*\n(.*?)```", below, flags=re.DOTALL)[-1]


@pytest.mark.parametrize("name", ["custom_reward", "custom_model", "custom_method"])
def test_the_documents_quote_the_example_word_for_word(name):
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    body = text[text.index('"""', 3) + 3 :].strip("\n")
    assert f"(examples/{name}.py):\n\n```python\n{body}\n```\n" in PAGES


def test_the_reward_gives_the_difference_of_red_and_blue_and_a_step_trains_on_it():
    (override,) = re.findall(r"'(rewards=.*?)'\n", command("A reward of your own"))
    config = load_config("demo", overrides=[*TINY, override.split(", {name: ocr")[0] + "]"])
    (scorer,) = load_scorers(config.rewards, False)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    table = score_all([scorer], images, [Prompt("x", "general")] * 5)
    by_hand = [sum(int(r) - int(b) for r, _, b in image.reshape(-1, 3)) / 64 / 255 for image in images]
    assert table.names == ("warmth",) and np.allclose(table.R_NK[:, 0], by_hand, atol=1e-12)
    report = optimizer_step(loop.start_learner(config), prepare_data(config).train)
    assert report.metrics["reward/warmth/std"] > 0 and report.metrics["alpha/warmth"] == pytest.approx(1)


def test_the_method_gives_every_reward_a_gradient_of_one_length():
    from custom_method import Normalised

    assert "balance.method=custom_method:Normalised" in command("A method of your own")
    g_KD = np.random.default_rng(1).normal(size=(3, 50)) * [[1], [10], [0.1]]
    balance = Normalised(BalanceConfig(), ("a", "b", "c"), 10).weigh(g_KD @ g_KD.T, np.array([True, True, False]))
    length_K = balance.w_K * np.linalg.norm(g_KD, axis=1)
    assert length_K[0] == pytest.approx(length_K[1]) and balance.w_K[2] == 0 and balance.alpha_K.tolist() == [0.5, 0.5, 0]
    config = load_config("demo", overrides=[*SMALL, "balance.method=custom_method:Normalised"])
    report = optimizer_step(loop.start_learner(config), prepare_data(config).train)
    assert report.metrics["alpha/compressibility"] == pytest.approx(1) and report.metrics["update/norm"] > 0


@pytest.mark.slow
def test_the_model_scores_as_the_built_in_family_does_on_the_same_weights(tmp_path):
    """GenEval on the demo's: a family that reads other tokens than the model was trained on scores a fifth of it."""
    assert "model.family=custom_model:MyModel" in command("A diffusion model of your own")
    overrides = ["evaluation.steps=8", "data.evaluation={general: null, ocr: null}", "data.evaluation_size=24", GENEVAL]
    scores = {}
    for family in ("custom_model:MyModel", "marble_core.models.sd3:SD3"):
        config = load_config("demo", overrides=[*overrides, f"model.family={family}"])
        tables, _ = measure(config, prepare_data(config).evaluation, {}, tmp_path / family)
        scores[family] = tables["base"].R_NK
    ours, built_in = scores.values()
    assert np.abs(ours - built_in).max() < 1e-6 and np.nanmean(built_in) > 0.2
    config = load_config("demo", overrides=[*SMALL, "model.family=custom_model:MyModel"])
    report = optimizer_step(loop.start_learner(config), prepare_data(config).train)
    assert report.metrics["update/norm"] > 0 and not report.skipped


def test_the_loop_trains_to_the_weights_of_a_run(tmp_path, monkeypatch):
    """To the bit, and its LoRA is one that is read."""
    import training_loop

    monkeypatch.chdir(tmp_path)
    ours = training_loop.train(SMALL, tmp_path / "adapter")
    config = load_config("demo", overrides=SMALL)
    theirs = loop.start_learner(config)
    loop.train(theirs, prepare_data(config).train, CheckpointStore(tmp_path / "kept", None, "run"), lambda _: None)
    wanted = theirs.policy.parameters_of("default")
    assert ours.step == theirs.step == 2
    assert all(torch.equal(p, wanted[n]) for n, p in ours.policy.parameters_of("default").items())
    means = [[line["metrics"]["reward/compressibility/mean"] for line in one.history] for one in (ours, theirs)]
    assert means[0] == means[1]
    assert len(theirs.policy.read_adapter(tmp_path / "adapter")) == len(wanted) // 2


@pytest.mark.parametrize("name", sorted(marble_core._HOME))
def test_a_public_name_says_what_it_takes_gives_and_raises_with_an_example(name):
    said = getattr(marble_core, name).__doc__ or ""
    wanted = ["Example:", "Args:"] if name != "Scorer" else ["Example:"]  # a protocol is not constructed
    wanted += [] if isinstance(getattr(marble_core, name), type) else ["Returns:", "Raises:"]
    assert [part for part in wanted if part not in said] == []
    lines = [line.strip() for line in said.split("Example:")[1].splitlines()]
    ast.parse("\n".join(line[4:] for line in lines if line.startswith((">>> ", "... "))))
