"""The bank's gradients are those of optimizer steps, and a bank that was stopped goes on to the same bits."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from builders import REWARDS, learner, prompts
from commands import TINY, one_sentence, run_marble
from marble_core.algorithm.advantages import estimate
from marble_core.algorithm.split_half import split
from marble_core.bench.signal import batches, policy
from marble_core.bench.signal.batches import Design
from marble_core.config.loading import load_config
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.models.policy import Policy
from marble_core.models.rollout import collect
from marble_core.prompts import mix
from marble_core.rewards.scoring import score_all
from marble_core.runtime.seeding import derive
from marble_core.types import RewardTable
from oracles import autograd_gradient, relative_error


@pytest.mark.parametrize("old_is_default", [True, False], ids=["as it begins", "old and default apart"])
def test_a_batch_holds_the_gradients_of_steps_that_autograd_finds(old_is_default):
    one = learner("loss.kl_beta=0")
    if not old_is_default:
        for p in one.policy.parameters_of("default").values():
            p.data.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        one.policy.old_is_default = False
    config, T = one.config, one.config.loss.timesteps
    found, _ = batches.gradients(one.policy, one.scorers, prompts(), config, Design(2, 2), 5)

    drawn = mix(prompts(), 6, 8, 0, derive(config.seed, "signal", 5))
    rollout = collect(one.policy, drawn, config.rollout)
    table = score_all(one.scorers, rollout.images_NHWC, drawn.prompts_of(np.arange(48)))
    for x, y, k, half in ((1, 1, 2, 1),) if old_is_default else ((0, 0, 0, 0), (0, 1, 3, 0)):
        own = np.flatnonzero(np.arange(48) % 8 // 4 == y)  # four of the eight images of each prompt
        step = estimate(RewardTable(table.names, table.R_NK[own]), drawn.group_N[own], "batch", "rewards")
        A_n = step.A_N if k == 3 else step.A_NK[:, k]  # the row behind the rewards is the weighted sum
        mask_n = np.ones(24, dtype=bool) if k == 3 else step.mask_NK[:, k]
        A_N, weight_N = np.zeros(48), np.zeros(48)
        A_N[own], weight_N[own] = A_n.clip(-5, 5), mask_n * (split(drawn)[own] == half) / mask_n.sum() / T
        again = replace(rollout, batch=replace(drawn, step=x))
        expected = autograd_gradient(one.policy, again, config, weight_N, A_N)
        mine = {n: found[n][x, y, half * 5 + k].reshape(g.shape) if n in found else g * 0 for n, g in expected.items()}
        assert relative_error(mine, expected) < 1e-4


def test_batches_share_no_seed_and_each_is_a_function_of_its_number():
    one = learner()
    first, again, second = (
        batches.gradients(one.policy, one.scorers, prompts(), one.config, Design(1, 1), batch)[0] for batch in (0, 0, 1)
    )
    assert all(torch.equal(first[n], again[n]) for n in first)
    flat = [torch.cat([g[0, 0, 0] for g in found.values()]) for found in (first, second)]
    assert abs(float(torch.nn.functional.cosine_similarity(*flat, dim=0))) < 0.9


@pytest.mark.slow
def test_a_bank_that_was_stopped_goes_on_to_the_same_bits_and_keeps_to_its_settings(tmp_path, monkeypatch, capsys):
    sets = [f"--set={assignment}" for assignment in (*TINY, "rollout.images_per_prompt=2", REWARDS)]
    monkeypatch.setenv("COLUMNS", "200")
    bank, command = tmp_path / "bank", ["bench", "signal", *sets, "--without", "geneval", "--out", str(tmp_path / "bank")]
    assert run_marble(*command, "--batches", "3", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert "min-norm (marble)" in said and "cos(step, truth)" in said and "batch 3 of 3" in said
    found = json.loads((bank / "signal.json").read_text())
    assert found["names"] == ["clipscore", "geneval"] and found["batches"] == 3
    assert [one["balanced"] for one in found["balance"]] == [["clipscore", "geneval"], ["clipscore"]]
    assert found["balance"][0]["rules"]["equal, raw"]["cosine"].keys() == {"value", "se"}
    assert found["bank"]["configuration"]["rollout.prompts"] == "3" and found["bank"]["commit"]

    whole = load_file(batches.path_of(bank, 1))
    batches.path_of(bank, 1).rename(batches.path_of(bank, 1).with_suffix(".unfinished"))  # it was killed while it wrote
    kept = batches.path_of(bank, 0).stat().st_mtime_ns
    assert run_marble(*command, "--batches", "3", monkeypatch=monkeypatch) == 0
    assert "batch 2 of 3" in (said := capsys.readouterr().out) and "batch 1 of 3" not in said
    again = load_file(batches.path_of(bank, 1))
    assert again.keys() == whole.keys() and all(torch.equal(again[n], whole[n]) for n in whole)
    assert batches.path_of(bank, 0).stat().st_mtime_ns == kept
    assert json.loads((bank / "signal.json").read_text()) == found

    assert run_marble(*command, "--batches", "3", "--set=rollout.prompts=6", monkeypatch=monkeypatch) == 2
    one_sentence(capsys.readouterr().err, str(bank), "rollout.prompts = 3, not 6")
    batches.path_of(bank, 2).write_bytes(b"broken")
    assert run_marble(*command, "--batches", "3", monkeypatch=monkeypatch) == 2
    one_sentence(capsys.readouterr().err, str(bank), "delete that file")


def test_an_adapter_is_the_policy_that_samples_and_is_trained(tmp_path):
    config = load_config("demo", overrides=[*TINY, REWARDS])
    trained = Policy.load(config)
    trained.add_trainable(config)
    weights = {n: torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) for n, p in trained.ema.items()}
    trained.save_adapter(tmp_path, weights)
    loaded, scorers = policy.load(config, tmp_path)
    for name in ("default", "old"):
        found = loaded.parameters_of(name)
        assert found.keys() == weights.keys() and all(torch.equal(found[n], weights[n]) for n in weights)
    assert loaded.old_is_default and [s.name for s in scorers] == ["clipscore", "geneval"]
    assert policy.weights_file(tmp_path).name == ADAPTER_FILE
    weaker, _ = policy.load(config.model_copy(update={"lora": config.lora.model_copy(update={"alpha": 16})}), tmp_path)
    assert all(
        torch.equal(p, 4 * weights[n] if "lora_B" in n else weights[n]) for n, p in weaker.parameters_of("default").items()
    )
