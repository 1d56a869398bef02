"""A cell of a study: evaluated at several steps of one run, and whatever was lost is made again to the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from marble_core.config.loading import load_config
from marble_core.config.stage_files import WATCH
from marble_core.evaluation.evaluator import Evaluator
from marble_core.evaluation.results import Evaluation
from marble_core.evaluation.watch import Record
from marble_core.prompts.dataset import prepare_data
from marble_core.tracking.finished_runs import local_run
from marble_core.training.study_cell import run_cell
from study_builders import TINY


@pytest.mark.slow
def test_a_cell_is_evaluated_at_several_steps_and_what_is_lost_is_trained_again_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["evaluation.roles={base_guidance: [2], strengths: [0.5]}", "watch={every: 1, prompts: 2, images: 2}"]
    config = load_config("demo", overrides=[*TINY, *settings])
    data = prepare_data(config)
    sampled: list[str] = []
    score = Evaluator.score
    monkeypatch.setattr(Evaluator, "score", lambda self, role, policy: sampled.append(role.name) or score(self, role, policy))

    def made(place: str) -> bytes:
        cell = run_cell(config, "a", data.train, data.evaluation, tmp_path / place, (1, 2), tmp_path / "roles", data.watched)
        cell.save(tmp_path / "cell.json")
        assert sorted(cell.evaluations) == [1, 2] and cell.steps == (1, 2)
        looks = Record.load(tmp_path / place / WATCH).looks
        assert cell.watched == {look.step: look.alarms for look in looks} and list(cell.watched) == [1, 2]
        assert list(cell.free_roles) == ["base-g2"] and list(cell.distances) == ["base", "base-g2"]
        for evaluation in cell.evaluations.values():
            assert list(evaluation.roles) == ["trained-s0.5"] and list(evaluation.distances) == ["trained", "trained-s0.5"]
            assert {len(own) for own in evaluation.distances.values()} == {len(cell.varied)} == {3}
        return (tmp_path / "cell.json").read_bytes()

    whole = made("run")
    assert sampled == ["base", "trained", "base-g2", "trained-s0.5", "trained", "trained-s0.5"], "what is free is sampled once"
    first, last = (Evaluation.load(tmp_path / "run" / f"step-{step}" / "evaluation.json") for step in (1, 2))
    seen = (tmp_path / "run" / WATCH).read_bytes()
    looks = Record.load(tmp_path / "run" / WATCH).looks
    assert [look.step for look in looks] == [1, 2] and all(look.diversity and look.rewards["geneval"].n for look in looks)
    assert first.settings["adapter_sha256"] != last.settings["adapter_sha256"]
    assert local_run(str(tmp_path / "run" / "step-1"), tmp_path).evaluation == first, "marble compare reads it"

    shutil.rmtree(tmp_path / "run" / "step-1")  # while the checkpoint of step 2 is still there
    assert made("run") == whole
    assert (tmp_path / "run" / WATCH).read_bytes() == seen
    assert sampled[6:] == ["trained", "trained-s0.5"], "what was not lost is not sampled again"
    assert len(whole) < 300_000
