"""An evaluation on several processes: the same scores, images and statistics as on one."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders import REWARDS, prepared_run
from marble_core import stages
from marble_core.config.loading import load_config
from marble_core.evaluation.results import Evaluation, Incumbent
from marble_core.evaluation.run import run_evaluation
from marble_core.models.policy import Policy
from marble_core.runtime import distributed
from marble_core.runtime.environment import KFP_RUN
from marble_core.training import launch as launching
from marble_core.types import MarbleError, Prompt
from several_processes import launch

PROMPTS = [
    *(Prompt(f"a {colour} circle", "general") for colour in ("red", "blue", "green")),
    *(
        Prompt(f"two {c} squares", "geneval", {"include": [{"class": "square", "count": 2, "color": c}]})
        for c in ("red", "blue")
    ),
]
ROLES = "evaluation.roles={base_guidance: [2]}"


def config():
    tiny = ("evaluation.steps=2", "evaluation.batch_size=2", "evaluation.resamples=100", "lora.rank=2", ROLES)
    # Two prompts are varied, fewer than three processes; one reward scores whole groups, and one fails on some images.
    varied = (
        "evaluation.diversity_prompts=2",
        "evaluation.diversity_images=2",
        "evaluation.rewards=[{name: diversity, options: {checkpoint: 'demo://rewards/clip'}}]",
    )
    return load_config("demo", overrides=[*tiny, *varied, REWARDS])


def lora(of, directory: Path, scale: float) -> Path:
    policy = Policy.load(of)
    policy.add_trainable(of)
    policy.save_adapter(directory, {n: p + scale for n, p in policy.parameters_of("default").items()})
    return directory


def evaluated(trained: Path, champion: Path, out: Path) -> None:
    with distributed.processes():
        found = run_evaluation(config(), PROMPTS, trained, out, Incumbent("7", champion))
        (out / f"returned-{distributed.rank()}.json").write_text(repr(found), encoding="utf-8")


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Where that many processes have written their evaluation."""
    directory = tmp_path_factory.mktemp("evaluations")
    adapters = [lora(config(), directory / name, scale) for name, scale in (("trained", 0.05), ("champion", -0.05))]

    @cache
    def evaluated_on(count: int) -> Path:
        (out := directory / str(count)).mkdir()
        if count == 1:
            evaluated(*adapters, out)
        else:
            ended = launch(count, evaluated, *adapters, out)
            assert [process.exitcode for process in ended] == [0] * count
        return out

    return evaluated_on


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "images" / "scores.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, pytest.param(2, marks=pytest.mark.deep)])  # each takes ten seconds of imports
def test_any_number_of_processes_finds_the_scores_images_and_statistics_of_one(on: Callable[[int], Path], count: int) -> None:
    one, several = lines(on(1)), lines(on(count))
    assert len(one) == len(PROMPTS) and {"base", "champion", "trained", "base-g2"} < set(one[0])
    assert sum("distances" in line for line in one) == 2
    for mine, theirs in zip(one, several, strict=True):
        assert list(mine) == list(theirs) and mine["noise_seed"] == theirs["noise_seed"]
        for name, value in mine.items():
            if isinstance(value, dict) and name not in ("pictures", "missing"):
                assert theirs[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name  # pixels may be rounded otherwise
            else:
                assert theirs[name] == value
    names = sorted(path.name for path in (on(1) / "images").glob("*.png"))
    assert len(names) == 3 * len(PROMPTS) and names == sorted(path.name for path in (on(count) / "images").glob("*.png"))
    for name in names:
        pixels = [np.asarray(Image.open(on(n) / "images" / name), dtype=int) for n in (1, count)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1, name
    first, other = (Evaluation.load(on(n) / "evaluation.json") for n in (1, count))
    assert other.mean_gain.mean == pytest.approx(first.mean_gain.mean, abs=1e-3)
    assert other.diversity.trained == pytest.approx(first.diversity.trained, rel=1e-3)
    assert other.settings == first.settings and other.champion_version == "7"


def test_every_process_returns_what_the_first_has_written_and_the_time_is_of_all_images(on: Callable[[int], Path]) -> None:
    for count in (1, 3):
        out = on(count)
        said = {(out / f"returned-{rank}.json").read_text() for rank in range(count)}
        assert len(said) == 1
        timing = json.loads((out / "timing.json").read_text())
        assert (timing["images"], timing["roles"]) == (4 * (len(PROMPTS) + 2 * 2), 4)


def test_on_a_cluster_all_gpus_of_the_pod_evaluate_elsewhere_as_many_as_train(monkeypatch: pytest.MonkeyPatch) -> None:
    one = load_config("demo", overrides=["train.processes=1"])
    two = load_config("demo", overrides=["train.processes=2"])
    monkeypatch.delenv(KFP_RUN, raising=False)
    for gpus, wanted in ((0, [1, 1]), (1, [1, 1]), (4, [1, 2])):
        monkeypatch.setattr(launching, "_gpus", lambda gpus=gpus: gpus)
        assert [launching.evaluation_processes(each) for each in (one, two)] == wanted
    monkeypatch.setenv(KFP_RUN, "run")
    assert launching.evaluation_processes(one) == 4


@pytest.mark.deep  # a training and two evaluations, one of them on two processes that import all libraries: a minute
def test_the_stage_evaluates_on_several_processes_and_says_what_stopped_one(
    services: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch says that there are two GPUs where it is asked how many; the processes compute on the CPU."""
    prepared, _ = prepared_run(tmp_path)
    stages.train(prepared, tmp_path / "adapter")
    numbers: list[dict[str, float]] = []
    for gpus in (0, 2):
        out = tmp_path / f"on-{gpus}"
        monkeypatch.setenv(KFP_RUN, "run") if gpus else None
        monkeypatch.setattr(launching, "_gpus", lambda gpus=gpus: gpus)
        numbers.append(stages.evaluate(prepared, tmp_path / "adapter", out, tmp_path / "page.html"))
    assert numbers[1] == pytest.approx(numbers[0], abs=1e-3)
    for file in (tmp_path / "adapter").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(MarbleError):
        stages.evaluate(prepared, tmp_path / "adapter", tmp_path / "cut", tmp_path / "page.html")
    assert not (tmp_path / "cut").exists()
