"""A rehearsal is the run itself, shortened, and says what the run will take."""

import json
import os
import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

from commands import marble_process
from marble_core import stages
from marble_core.config.loading import load_config, presets
from marble_core.config.rehearsal import rehearsed
from marble_core.config.schema import RunConfig
from marble_core.estimate import resolve_batch_sizes, sizes_of
from marble_core.estimate.rehearsal import rehearsal_seconds
from marble_core.rewards.cards import cards_of
from marble_core.training.rehearsal import whole_run
from paths import TESTS

# One reward that needs no checkpoint, on the demo's real weights.
QUICK = [
    'rewards=[{name: warmth, scorer: "colour_rewards:Warmth"}]', "train.processes=1", "rollout.images_per_prompt=4", "rollout.steps=2",
    "loss.timesteps=2", "data.train_size=30", "data.evaluation_size=16", "evaluation.steps=3", "evaluation.resamples=200", "evaluation.diversity_prompts=0",
]  # fmt: skip


@pytest.mark.parametrize("preset", presets())
def test_the_rehearsal_of_every_preset_is_a_sound_configuration_that_fills_the_same_micro_batches(preset: str) -> None:
    whole = load_config(preset)
    whole = resolve_batch_sizes(whole, cards_of(whole.measured))
    short = rehearsed(whole)
    assert RunConfig.model_validate(short.model_dump()) == short, "prepare's file is read again by the stages behind it"
    assert short.train.steps == 2 and 8 <= short.rollout.prompts <= max(9, whole.hardware.gpus + 2)
    assert short.rollout.prompts * short.rollout.images_per_prompt >= max(1, whole.hardware.gpus) * min(
        short.loss.micro_batch, 8
    )
    same = {
        "lora": ...,
        "loss": ...,
        "model": ...,
        "data": ...,
        "rewards": ...,
        "evaluation": ...,
        "hardware": ...,
        "optimizer": ...,
    }
    assert short.model_dump(include=same) == whole.model_dump(include=same)
    assert short.registry.model == "marble-rehearsal"


def test_a_rehearsal_of_sd35_medium_is_estimated_at_under_15_minutes_of_one_gpu() -> None:
    config = load_config("sd35-medium-1gpu-80g")
    config = resolve_batch_sizes(config, cards_of(config.measured))
    sizes = sizes_of(config.model)
    assert sizes is not None
    assert 60 < rehearsal_seconds(config, sizes) < 0.4 * 15 * 60, "more than half of it is left for loading and scoring"


def test_a_whole_run_takes_what_is_repeated_as_often_as_it_does_it_and_the_rest_once(tmp_path: Path) -> None:
    whole = load_config("demo", overrides=["train.steps=100", "watch.every=50", "watch.prompts=4", "watch.images=3"])
    prepared, adapter, evaluation = (tmp_path / name for name in ("prepared", "adapter", "evaluation"))
    for directory in (prepared, adapter, evaluation):
        directory.mkdir()
    (prepared / "full_config.json").write_text(whole.to_json())
    (prepared / "config.json").write_text(rehearsed(whole).to_json())  # 9 prompts for 36, of 8 images
    (prepared / "timing.json").write_text(json.dumps({"stage": 11.0, "held_out": 500, "varied": 96}))
    (adapter / "timing.json").write_text(json.dumps({"stage": 70.0}))
    (evaluation / "timing.json").write_text(json.dumps({"stage": 60, "seconds": 45, "images": 90, "roles": 2, "varied": 9}))
    steps = [{"metrics": {"time/sample": first, "time/score": 1.0, "time/train": 2.0}} for first in (30.0, 7.0)]
    (adapter / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    found = {each.stage: each.whole for each in whole_run(prepared, adapter, evaluation, 4.0)}
    # A step of 72 images took 10 s, so one of 288 takes 40; 50 s of 70 were no step; 3 looks of 4 x 3 images of 3 sources at half a
    # second an image, over 2 processes. 2 models make 500 + 96 x 4 images; 15 s of 60 were no image.
    assert found == {
        "prepare": 11.0,
        "train": 50 + 100 * 40 + 3 * 36 * 0.5 / 2,
        "evaluate": 15 + 2 * 884 * 0.5,
        "register": 4.0,
    }


def test_a_rehearsal_takes_every_stage_to_a_version_under_a_scratch_name_and_says_what_the_run_will_take(
    services: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepared, adapter, evaluation = (tmp_path / name for name in ("prepared", "adapter", "evaluation"))
    overrides = [*QUICK, "registry.model=rehearsed-here", "registry.margin=9"]
    stages.prepare("demo", overrides, "rehearsal-1", prepared, tmp_path / "data.html", {"rehearse": "yes"})
    stages.train(prepared, adapter)
    stages.evaluate(prepared, adapter, evaluation, tmp_path / "report.html")
    outcome = stages.register(prepared, adapter, evaluation, tmp_path / "register.html")
    client = MlflowClient()
    version = client.get_model_version_by_alias("rehearsed-here-rehearsal", "challenger")
    assert (outcome.version, outcome.alias, outcome.decision.summary) == (version.version, "challenger", "rehearsed")
    assert client.search_model_versions("name = 'rehearsed-here'") == []
    assert client.get_run(version.run_id).data.tags["marble.rehearsal"] == "true"
    assert len((adapter / "history.jsonl").read_text().splitlines()) == 2
    assert len((evaluation / "images" / "scores.jsonl").read_text().splitlines()) == 9
    first, *stages_said = outcome.notes
    assert re.match(r"The whole run will take about [\d.]+ (s|min|h), by this rehearsal", first)
    assert [said.partition(":")[0] for said in stages_said] == ["prepare", "train", "evaluate", "register"]
    assert "32 of 144 and 5 looks of 192 images" in stages_said[1] and first in (tmp_path / "register.html").read_text()


@pytest.mark.deep  # four processes that import torch twice: a minute. What the command adds to the stages is two lines.
def test_the_command_rehearses_in_processes_and_ends_with_the_time_of_the_whole_run(
    services: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)  # of the stages too, which have colour_rewards there
    pairs = [word for pair in (*QUICK, "registry.model=by-command") for word in ("--set", pair)]
    done = marble_process(tmp_path, "run", "--rehearse", *pairs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Rehearsal rehearsal-" in done.stdout and "version 1 of by-command-rehearsal as challenger" in done.stdout
    assert re.search(r"The whole run will take about [^!?]*pods and GPUs\.$", " ".join(done.stdout.split()))
