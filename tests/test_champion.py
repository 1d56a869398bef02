"""Two runs through the real stages, at tiny size: the second meets the first one's champion, and both are in the history."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from builders import registered_by_hand
from marble_core import __version__, stages
from marble_core.checkpoints.run_checkpoints import RunCheckpoints
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.evaluation.results import Evaluation
from marble_core.runtime.housekeeping import failures
from marble_core.storage.s3 import S3
from marble_core.types import MarbleError, Prompt
from paths import ROOT

TINY = [
    "train.steps=1", "train.processes=1", "train.checkpoint_every=1", "rollout.prompts=3", "rollout.images_per_prompt=4", "rollout.steps=3",
    "loss.timesteps=2", "loss.kl_beta=0", "data.train_size=30", "data.evaluation_size=4", "evaluation.steps=3",
    "evaluation.resamples=200", "evaluation.diversity_prompts=3", "evaluation.diversity_images=2", "registry.model=tiny",
    "evaluation.rewards=[{name: compressibility}]",
]  # fmt: skip


class FailsOnTheSecondModel:
    """Once one model's images are scored and saved."""

    name = "broken"
    value_range = (0.0, 1.0)

    def __init__(self) -> None:
        self.calls = 0

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        self.calls += 1
        if self.calls > 1:
            raise MarbleError("The scorer is out of words: give it some.")
        return np.zeros(len(prompts))

    def self_check(self) -> None:
        pass


@dataclass
class Run:
    """A run's directories, and what its evaluation found."""

    root: Path
    evaluation: Evaluation
    rows: list[dict[str, Any]]

    @property
    def images(self) -> Path:
        return self.root / "evaluation" / "images"

    def pixels(self, role: str) -> np.ndarray:
        return np.stack([np.asarray(Image.open(self.images / row["pictures"][role])) for row in self.rows])


def evaluated(root: Path, run_id: str, *overrides: str, evaluates_with: Mapping[str, str] | None = None) -> Run:
    prepared, adapter, out = root / "prepared", root / "adapter", root / "evaluation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARBLE_PROGRESS", str(root.parent / f"{run_id}.jsonl"))
        stages.prepare("demo", [*TINY, *overrides], run_id, prepared, root / "data.html")
        stages.train(prepared, adapter)
        for name, value in (evaluates_with or {}).items():
            patch.setenv(name, value)
        stages.evaluate(prepared, adapter, out, root / "report.html")
    rows = [json.loads(line) for line in (out / "images" / "scores.jsonl").read_text().splitlines()]
    return Run(root, Evaluation.load(out / "evaluation.json"), rows)


@pytest.fixture(scope="module")
def runs(services_of_module: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Run one, which is made the champion by hand (so small a training decides nothing), and run two, of another rank.

    Run one asks for a GPU. S3 is gone by the time at which run two is evaluated.
    """
    from mlflow import MlflowClient

    root = tmp_path_factory.mktemp("champion")
    patch = pytest.MonkeyPatch()
    patch.chdir(root)
    one = evaluated(root / "one", "one", "optimizer.lr=2e-2", "hardware.gpus=1")
    version = registered_by_hand(*(root / "one" / name for name in ("prepared", "adapter", "evaluation")))
    MlflowClient().set_registered_model_alias("tiny", "champion", version)
    two = evaluated(
        root / "two", "two", "optimizer.lr=1e-2", "lora.rank=8", evaluates_with={"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    )
    patch.undo()
    return one, two


def test_the_second_run_is_compared_with_the_firsts_champion_on_the_same_pictures(runs: tuple[Run, Run]) -> None:
    one, two = runs
    assert one.evaluation.champion is None and "tiny has no champion yet" in one.evaluation.no_champion
    assert two.evaluation.champion_version == "1" and not two.evaluation.no_champion
    for row, before in zip(two.rows, one.rows, strict=True):
        assert (
            row["champion"] == before["trained"] and row["base"] == before["base"] and row["noise_seed"] == before["noise_seed"]
        )
    assert (two.pixels("champion") == one.pixels("trained")).all() and (two.pixels("base") == one.pixels("base")).all()
    assert (two.pixels("trained") != two.pixels("champion")).any() and (two.pixels("champion") != two.pixels("base")).any()

    over = two.evaluation.champion
    assert over is not None and set(over.rewards) == {*two.evaluation.measured, *two.evaluation.side}
    for name, versus in over.rewards.items():
        now, before = ({**run.evaluation.measured, **run.evaluation.side}[name] for run in (two, one))
        assert versus.mean == before.trained and versus.difference.mean == pytest.approx(now.trained - before.trained)
    gains = [over.rewards[n].difference.mean / r.base_std for n, r in two.evaluation.rewards.items() if r.base_std]
    assert over.mean_gain.mean == pytest.approx(np.mean(gains))
    assert two.evaluation.diversity is not None and one.evaluation.diversity is not None
    assert two.evaluation.diversity.champion == one.evaluation.diversity.trained


def test_a_reward_that_was_only_measured_is_beside_the_trained_ones(runs: tuple[Run, Run]) -> None:
    _, two = runs
    assert list(two.evaluation.held_out) == ["compressibility"] and "compressibility" not in two.evaluation.rewards
    assert all("compressibility" in two.rows[0][role] for role in ("base", "champion", "trained"))
    assert "compressibility" in two.evaluation.by_source["ocr"]


def notes(run: Run, stage: str) -> str:
    lines = (run.root.parent / f"{run.root.name}.jsonl").read_text().splitlines()
    return "\n".join(event.get("note", "") for line in lines if (event := json.loads(line))["stage"] == stage)


def test_train_and_evaluate_say_that_the_gpu_that_was_asked_for_is_not_there(runs: tuple[Run, Run]) -> None:
    one, two = runs
    for stage, does in (("train", "trains"), ("evaluate", "evaluates")):
        said = f"Warning: 1 GPU was asked for and torch {torch.__version__} sees 0: it {does} on the CPU"
        assert (said in notes(one, stage)) == (torch.cuda.device_count() == 0)
        assert "Warning" not in notes(two, stage), "which asked for none"


def test_an_evaluation_at_whose_end_s3_is_gone_is_whole_and_the_hint_is_what_is_missing(
    runs: tuple[Run, Run], services: dict[str, str]
) -> None:
    _, two = runs
    assert two.evaluation.measured and (two.root / "report.html").stat().st_size > 10_000
    assert failures["the hint for retention"]
    assert [RunCheckpoints(S3("marble"), run.root.name).best_step() for run in runs] == [1, None]


def test_an_evaluation_whose_report_cannot_be_written_is_whole_and_its_page_says_so(
    runs: tuple[Run, Run], services: dict[str, str], tmp_path: Path
) -> None:
    one, _ = runs
    shutil.copytree(one.root / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "history.jsonl").write_text('{"step": 1, "metrics": "of another program"}\n')
    found = stages.evaluate(one.root / "prepared", tmp_path / "adapter", tmp_path / "out", tmp_path / "report.html")
    assert found and {"evaluation.json", "decision.json"} < {path.name for path in (tmp_path / "out").iterdir()}
    assert "The report could not be written" in (tmp_path / "report.html").read_text()


def test_both_runs_and_both_versions_are_in_the_history(runs: tuple[Run, Run], services: dict[str, str]) -> None:
    from mlflow import MlflowClient

    _, two = runs
    client = MlflowClient()
    decided = json.loads((two.root / "evaluation" / "decision.json").read_text())
    assert any("over the champion, version 1," in reason for reason in decided["reasons"])
    version = registered_by_hand(*(two.root / name for name in ("prepared", "adapter", "evaluation")))
    assert version == "2"
    client.set_registered_model_alias("tiny", "champion", "1")  # the next tests' champion is the first one still
    found = {str(v.version): v.tags for v in client.search_model_versions("name = 'tiny'")}
    assert found["1"]["marble.compared_with"] == "" and found["2"]["marble.compared_with"] == "1"
    assert "marble.mean_gain_over_champion" in found["2"]


def test_diffusers_and_mlflow_load_the_registered_lora_and_draw_the_evaluations_pictures_to_the_bit(
    runs: tuple[Run, Run], services: dict[str, str], tmp_path: Path
) -> None:
    import mlflow
    import torch
    from diffusers import StableDiffusion3Pipeline

    one, _ = runs
    downloaded = Path(mlflow.artifacts.download_artifacts("models:/tiny@champion", dst_path=str(tmp_path)))
    assert f"for demo://sd3 at revision {__version__}, " in (downloaded / "README.md").read_text()
    assert "## Licences" in (downloaded / "README.md").read_text() and len(list((downloaded / "examples").iterdir())) == 12
    base = ROOT / "marble_core" / "demo" / "weights" / "sd3"
    plain = StableDiffusion3Pipeline.from_pretrained(base, torch_dtype=torch.float32)
    plain.load_lora_weights(str(downloaded / "adapter_weights"))
    flavour = mlflow.diffusers.load_model("models:/tiny@champion").load_pipeline(torch_dtype=torch.float32, device="cpu")

    def draw(pipe: Any, rows: list[dict[str, Any]]) -> np.ndarray:
        noise = [torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(row["noise_seed"])) for row in rows]
        pipe.set_progress_bar_config(disable=True)
        pipe.vae.to(memory_format=torch.channels_last)
        made = pipe(
            [row["prompt"] for row in rows], latents=torch.stack(noise), num_inference_steps=3, guidance_scale=1.0,
            height=64, width=64, max_sequence_length=1, output_type="pil",
        ).images  # fmt: skip
        return np.stack([np.asarray(image) for image in made])

    for pipe in (plain, flavour):
        assert (draw(pipe, one.rows) == one.pixels("trained")).all()
    two_at_a_time = np.concatenate([draw(plain, one.rows[i : i + 2]) for i in range(0, len(one.rows), 2)])
    assert np.abs(two_at_a_time.astype(int) - one.pixels("trained")).max() <= 1


def test_an_evaluation_that_fails_leaves_nothing_behind(
    runs: tuple[Run, Run], services: dict[str, str], tmp_path: Path
) -> None:
    """The base's images are drawn and scored by then."""
    one, _ = runs
    shutil.copytree(one.root / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / ADAPTER_FILE
    save_file({name: torch.full_like(p, float("nan")) for name, p in load_file(file).items()}, file)
    with pytest.raises(MarbleError, match="not finite"):
        stages.evaluate(one.root / "prepared", tmp_path / "adapter", tmp_path / "out", tmp_path / "report.html")
    assert not (tmp_path / "out").exists() and not (tmp_path / "report.html").exists()


def test_a_scorer_that_fails_half_way_costs_an_evaluation_its_values_and_nothing_else(
    runs: tuple[Run, Run], services: dict[str, str], tmp_path: Path
) -> None:
    one, _ = runs
    shutil.copytree(one.root / "prepared", tmp_path / "prepared")
    config = json.loads((tmp_path / "prepared" / "config.json").read_text())
    config["evaluation"]["rewards"] = [{"name": "broken", "scorer": "test_champion:FailsOnTheSecondModel"}]
    (tmp_path / "prepared" / "config.json").write_text(json.dumps(config))
    stages.evaluate(tmp_path / "prepared", one.root / "adapter", tmp_path / "out", tmp_path / "report.html")
    assert "out of words" in (tmp_path / "report.html").read_text()
