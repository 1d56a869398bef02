"""What was written yesterday is read, migrated, or refused in a sentence: configurations, checkpoints, evaluations, pipelines, cells.

tests/version_0 was written by the code before there were versions: a run of one step with a LoRA of rank 1, and its evaluation.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import learner, prompts, weights
from commands import sentence_of
from marble_core import stages
from marble_core.checkpoints import CheckpointStore
from marble_core.checkpoints.manifest import MANIFEST, _canonical, seal
from marble_core.config import formats
from marble_core.config.formats import KEY, Format, Migration, dropped, renamed
from marble_core.config.loading import load_config, read_config
from marble_core.evaluation.cell import Cell
from marble_core.evaluation.results import Evaluation
from marble_core.prompts.dataset import prepare_data
from marble_core.tracking.finished_runs import local_run
from marble_core.training import loop
from marble_core.types import MarbleError
from paths import TESTS
from report_builders import an_evaluation
from study_builders import a_cell

OLD = TESTS / "version_0"
NAME = next(OLD.glob("step-*")).name


def at_version(path: Path, version: int | None) -> None:
    """The file as if another version of MARBLE had written it; None takes the version away."""
    tree = json.loads(path.read_text())
    tree.pop(KEY, None)
    path.write_text(json.dumps(tree if version is None else {KEY: version, **tree}))


def test_each_file_says_its_version(tmp_path: Path) -> None:
    loop.train(learner("train.steps=1"), prompts(), CheckpointStore(tmp_path / "run", None, "run"), lambda _: None)
    (checkpoint,) = (tmp_path / "run").glob("step-*")
    an_evaluation().save(tmp_path / "evaluation.json")
    a_cell("a", 0, 0.1).save(tmp_path / "cell.json")
    files = [
        *(checkpoint / name for name in (MANIFEST, "state.json", "config.json")),
        tmp_path / "evaluation.json",
        tmp_path / "cell.json",
    ]
    assert [json.loads(path.read_text())[KEY] for path in files] == [2, 2, 1, 1, 1]
    assert Evaluation.load(tmp_path / "evaluation.json") == an_evaluation()


def test_a_checkpoint_of_before_there_were_versions_goes_on(tmp_path: Path) -> None:
    shutil.copytree(OLD / NAME, tmp_path / NAME)
    assert KEY not in json.loads((tmp_path / NAME / MANIFEST).read_text())
    config = read_config(tmp_path / NAME / "config.json")
    config = config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})})
    going_on = loop.start_learner(config)
    loop.train(going_on, prepare_data(config).train, CheckpointStore(tmp_path, None, "house"), lambda _: None)
    assert going_on.step == 2 and [line["step"] for line in going_on.history] == [1, 2]
    assert going_on.history[0] == json.loads((OLD / NAME / "history.jsonl").read_text())


def test_an_evaluation_and_a_configuration_of_before_are_read(tmp_path: Path) -> None:
    found = Evaluation.load(OLD / "evaluation.json")
    want = json.loads((OLD / "evaluation.json").read_text())
    assert found.rewards["clipscore"].trained == want["rewards"]["clipscore"]["trained"] and found.settings["steps"] == 2
    shutil.copytree(OLD, tmp_path / "house")
    shutil.copy(OLD / NAME / "config.json", tmp_path / "house")
    run = local_run("house", tmp_path)
    assert run is not None and run.evaluation == found and run.params["lora.rank"] == "1"


def test_without_the_version_a_checkpoint_goes_on_to_the_same_bits_as_with_it(tmp_path: Path) -> None:
    loop.train(learner("train.steps=1"), prompts(), CheckpointStore(tmp_path / "new", None, "run"), lambda _: None)
    (new,) = (tmp_path / "new").glob("step-*")
    old = tmp_path / "old" / new.name
    shutil.copytree(new, old)
    for name in ("state.json", "config.json"):
        at_version(old / name, None)
    (old / MANIFEST).unlink()
    seal(old, "run", old.name)
    both = [learner("train.steps=2") for _ in range(2)]
    for one, place in zip(both, ("new", "old"), strict=True):
        loop.train(one, prompts(), CheckpointStore(tmp_path / place, None, "run"), lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(weights(both[0]).values(), weights(both[1]).values(), strict=True))


def migrating(monkeypatch: pytest.MonkeyPatch, migration: Migration) -> None:
    """The configuration's format as it will be one version on, in every module that uses it."""
    now = formats.CONFIGURATION
    later = replace(now, version=now.version + 1, migrations={**now.migrations, now.version: migration})
    for module in ("config.formats", "config.loading", "config.schema"):
        monkeypatch.setattr(f"marble_core.{module}.CONFIGURATION", later)


def test_a_setting_that_was_taken_away_does_not_make_yesterdays_run_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Yesterday's file has two settings that there are no more: one went, one has another name now."""
    config = load_config("demo", overrides=["train.steps=7"])
    tree = json.loads(config.to_json())
    tree["loss"]["sharpness"] = 0.5
    tree["optimizer"]["warm_steps"] = tree["train"].pop("steps")
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(MarbleError, match=r"Unknown key 'loss\.sharpness'"):
        read_config(tmp_path / "config.json")

    def migrate(tree: dict[str, Any]) -> dict[str, Any]:
        return renamed("optimizer.warm_steps", "train.steps")(dropped("loss.sharpness", "model.never_there")(tree))

    migrating(monkeypatch, migrate)
    assert read_config(tmp_path / "config.json") == config
    assert json.loads(config.to_json())[KEY] == 2
    (tmp_path / "new.json").write_text(config.to_json())
    assert read_config(tmp_path / "new.json") == config, "what is of this version is not migrated"


def test_a_run_goes_on_over_a_setting_that_was_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.train(learner("train.steps=1"), prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)
    (checkpoint,) = tmp_path.glob("step-*")
    tree = json.loads((checkpoint / "config.json").read_text())
    tree["loss"]["sharpness"] = 0.5
    (checkpoint / "config.json").write_text(json.dumps(tree))
    (checkpoint / MANIFEST).unlink()
    seal(checkpoint, "run", checkpoint.name)
    migrating(monkeypatch, dropped("loss.sharpness"))
    one = learner("train.steps=2")
    loop.train(one, prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)
    assert [line["step"] for line in one.history] == [1, 2]


@pytest.mark.parametrize("version", [2, 99, -1, "1", None, 1.0, True])
def test_another_version_is_refused_in_a_sentence_with_file_version_and_remedy(version: Any, tmp_path: Path) -> None:
    an_evaluation().save(tmp_path / "evaluation.json")
    a_cell("a", 0, 0.1).save(tmp_path / "cell.json")
    (tmp_path / "config.json").write_text(load_config("demo").to_json())
    for name, read in (("evaluation.json", Evaluation.load), ("cell.json", Cell.load), ("config.json", read_config)):
        (tmp_path / name).write_text(json.dumps(json.loads((tmp_path / name).read_text()) | {KEY: version}))
        with pytest.raises(MarbleError) as caught:
            read(tmp_path / name)
        said = sentence_of(caught)
        assert str(tmp_path / name) in said and repr(version) in said, said


def test_a_checkpoint_of_a_later_version_is_refused_and_not_passed_over_for_an_earlier_one(tmp_path: Path) -> None:
    loop.train(learner("train.steps=2"), prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)
    newest = max(tmp_path.glob("step-*"))

    def sealed_at(version: int, file: str) -> None:
        at_version(newest / file, version)
        if file == MANIFEST:
            tree = json.loads((newest / file).read_text())
            (newest / file).write_bytes(_canonical({k: v for k, v in tree.items() if k != "sha256"}))
        else:
            (newest / MANIFEST).unlink()
            seal(newest, "run", newest.name)

    for file in (MANIFEST, "state.json"):
        sealed_at(7, file)
        with pytest.raises(
            MarbleError, match=r"has version 7 of a checkpoint, and MARBLE .* reads up to 2: use the MARBLE that"
        ):
            loop.train(learner("train.steps=3"), prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)


def test_a_version_that_no_migration_leads_from_is_refused_with_what_to_do() -> None:
    one = Format("a thing", 3, "make it again", {1: lambda tree: tree, 2: lambda tree: {**tree, "b": tree["a"]}})
    assert one.upgrade({KEY: 1, "a": 5}, "x.json") == {"a": 5, "b": 5}
    with pytest.raises(
        MarbleError, match=r"^x.json has version 0 of a thing, which MARBLE .* cannot read any more: make it again.$"
    ):
        one.upgrade({"a": 5}, "x.json")


def test_a_stage_reads_a_pipeline_of_this_version_and_refuses_one_of_another_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "x", "nothing_new": "Nothing is new."}))
    for version in ("", "4"):  # none: not started by a pipeline file
        monkeypatch.setenv("MARBLE_PIPELINE_FORMAT", version)
        assert stages.train(tmp_path, tmp_path / "out") == {}
    for version in ("0", "3", "5", "x"):
        monkeypatch.setenv("MARBLE_PIPELINE_FORMAT", version)
        with pytest.raises(MarbleError, match=rf"^The pipeline file has .*{version}.* of the compiled pipeline"):
            stages.train(tmp_path, tmp_path / "out")
