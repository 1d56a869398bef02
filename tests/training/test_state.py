"""What a checkpoint holds: another run's weights to begin from, the state before bad steps, metrics that were never sent."""

import json

import numpy as np
import pytest
import torch

from builders import learner, prompts, weights
from marble_core import step as step_module
from marble_core.checkpoints import CheckpointStore
from marble_core.checkpoints.start_from import check_beginning
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.step import optimizer_step
from marble_core.training import loop
from marble_core.training.state import save_state, versions
from marble_core.types import MarbleError


def store(path, s3=None, run_id="run"):
    return CheckpointStore(path, s3, run_id)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[n]) for n, v in a.items())


@pytest.fixture
def first(bucket, tmp_path):
    """A run of two steps on S3, and its address."""
    one = learner("train.steps=2")
    checkpoints = store(tmp_path / "first", bucket, "first")
    with checkpoints.owned():
        loop.train(one, prompts(), checkpoints, lambda _: None)
    return one, f"s3://{bucket.bucket}/runs/first"


def test_a_run_starts_from_anothers_weights_with_an_optimizer_of_its_own(first, tmp_path):
    one, address = first
    other = learner(f"train.start_from={address}", "optimizer.lr=0.01", "train.steps=3")
    loop._go_on(other, store(tmp_path / "second"))
    assert same(weights(other), weights(one)) and same(other.policy.ema, one.policy.ema)
    assert same(dict(other.policy.parameters_of("old")), dict(one.policy.parameters_of("old")))
    assert (other.step, other.updates, other.history, len(other.optimizer.state)) == (0, 0, [], 0)
    loop.train(other, prompts(), store(tmp_path / "second"), lambda _: None)
    resumed = learner(f"train.start_from={address}", "optimizer.lr=0.01", "train.steps=3")
    loop._go_on(resumed, store(tmp_path / "second"))
    assert resumed.step == 3 and same(weights(resumed), weights(other)), "once begun, its own checkpoints come first"


def test_a_run_starts_from_a_lora_made_elsewhere_by_its_path_and_by_its_address(bucket, tmp_path):
    made = learner()
    for p in made.policy.parameters_of("default").values():
        p.data.normal_(std=0.1)
    made.policy.save_adapter(tmp_path / "made", weights(made))
    bucket.upload_dir(tmp_path / "made", "loras/made")
    for address in (tmp_path / "made", tmp_path / "made" / ADAPTER_FILE, f"s3://{bucket.bucket}/loras/made"):
        other = learner(f"train.start_from={address}")
        check_beginning(other.config, bucket, "none")
        loop._go_on(other, store(tmp_path / "fresh"))
        assert same(weights(other), weights(made)) and same(other.policy.ema, weights(made)) and other.policy.old_is_default
    for setting, says in (
        (f"{tmp_path}/nowhere", r"does not exist\. .*write s3://BUCKET/runs/RUN_ID"),
        (f"s3://{bucket.bucket}/loras/none", "nothing at s3://"),
        (tmp_path, "holds no pytorch_lora_weights.safetensors"),
    ):
        with pytest.raises(MarbleError, match=f"train.start_from = '{setting}': .*{says}"):
            check_beginning(learner(f"train.start_from={setting}").config, bucket, "none")
    with pytest.raises(MarbleError, match=r"rank 4, above lora\.rank = 2: set lora\.rank=4"):
        check_beginning(learner(f"train.start_from={tmp_path / 'made'}", "lora.rank=2").config, bucket, "none")


def test_weights_of_another_rank_and_a_missing_run_are_one_sentence_before_a_gpu_is_asked_for(first, bucket, tmp_path):
    _, address = first
    with pytest.raises(MarbleError, match=r"train\.start_from = 's3://.*' was trained with lora.rank = 4, not 8: set it so"):
        loop._go_on(learner(f"train.start_from={address}", "lora.rank=8"), store(tmp_path / "second"))
    with pytest.raises(MarbleError, match="there is no complete checkpoint"):
        check_beginning(learner(f"train.start_from={address}st").config, bucket, "")
    with pytest.raises(MarbleError, match=r"begun with lora.rank = 4, not 8 \(s3://.*Only train"):
        check_beginning(learner("lora.rank=8").config, bucket, "first")
    check_beginning(learner("train.steps=9").config, bucket, "first")


def test_a_checkpoint_says_what_wrote_it_and_another_version_is_a_note(tmp_path, caplog, monkeypatch):
    loop.train(learner("train.steps=1"), prompts(), store(tmp_path), lambda _: None)
    (path,) = tmp_path.glob("step-*/state.json")
    state = json.loads(path.read_text())
    assert state["versions"] == versions() and state["versions"].keys() == {"marble", "torch", "diffusers", "peft"}
    assert state["config"] == learner("train.steps=1").config.digest
    monkeypatch.setattr("marble_core.training.state.versions", lambda: {**versions(), "torch": "9.9"})
    loop.train(learner("train.steps=1"), prompts(), store(tmp_path), lambda _: None)
    assert f"torch is 9.9 now, not {versions()['torch']} as before step 1" in caplog.text


def test_bad_steps_in_a_row_leave_the_state_before_them_and_are_made_again(tmp_path):
    whole = learner("train.steps=4", "train.checkpoint_every=9")
    loop.train(whole, prompts(), store(tmp_path / "whole"), lambda _: None)
    bad, calls = learner("train.steps=9", "train.checkpoint_every=1", "train.max_bad_steps=2"), []
    score = bad.scorers[1].score

    def fails_from_the_third_step(images, of):
        calls.append(len(images))
        return score(images, of) if len(calls) <= 2 else np.full(len(images), np.inf)

    bad.scorers[1].score = fails_from_the_third_step
    with pytest.raises(
        MarbleError, match=r"2 steps in a row .*pickscore is not finite for the prompt .*saved as .*step-000002"
    ):
        loop.train(bad, prompts(), store(tmp_path / "bad"), lambda _: None)
    assert [p.name[:11] for p in sorted((tmp_path / "bad").glob("step-*"))][-1] == "step-000002"
    healed = learner("train.steps=4")
    loop.train(healed, prompts(), store(tmp_path / "bad"), lambda _: None)
    assert same(weights(healed), weights(whole)) and [line["step"] for line in healed.history] == [1, 2, 3, 4]


def test_a_gradient_that_is_not_finite_names_reward_and_prompt(monkeypatch):
    one, collect = learner(), step_module.collect

    def with_one_nan(*arguments):
        rollout = collect(*arguments)
        rollout.x0_NCHW[5] = torch.nan
        return rollout

    monkeypatch.setattr(step_module, "collect", with_one_nan)
    before = weights(one)
    report = optimizer_step(one, prompts())
    (note,) = report.notes
    prompt = step_module.mix(prompts(), 6, 4, 0, one.config.seed).prompts[5 // 4]
    assert report.fault and "reward clipscore" in note and f"latents of the prompt {prompt.text!r}" in note
    assert same(weights(one), before)


def test_a_pickle_in_place_of_the_tensors_is_one_sentence_though_every_hash_is_right(tmp_path):
    def pickled(directory):
        save_state(learner(), directory)
        torch.save({"x": torch.zeros(1)}, directory / "state.safetensors")

    checkpoints = store(tmp_path)
    with checkpoints.owned():
        checkpoints.save(1, pickled)
    with pytest.raises(MarbleError, match=r"state.safetensors is no safetensors file"):
        loop.train(learner("train.steps=2"), prompts(), store(tmp_path), lambda _: None)


def test_saving_writes_nothing_but_safetensors_and_json(tmp_path):
    save_state(learner(), tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors", ".json", ".jsonl"}
