"""A reward in a folder of its own, with a dependency of its own: through the images that EXTRA makes, and through containers here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import TAG, docker, in_image
from marble_core.cli.options import REFUSED
from paths import ROOT

pytestmark = pytest.mark.containers

REWARD = """
from {dependency} import {name}


class Warmth:
    value_range = (-1.0, 1.0)

    def __init__(self, factor: float = 1.0):
        self.factor = factor

    def applies(self, prompt):
        return True

    def score(self, images_NHWC, prompts):
        return self.factor * (images_NHWC[..., 0].mean((1, 2)) - images_NHWC[..., 2].mean((1, 2))) / 255

    def self_check(self):
        pass
"""
LOOK = (
    "import warmth, os, importlib.util; print(os.environ['MARBLE_MAY_RUN'], importlib.util.find_spec('iniconfig') is not None)"
)
FOUND = "from marble_core.config.imports import import_class; print(import_class('warmth:Warmth', 'x').__name__)"


@pytest.fixture(scope="module")
def with_extra(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The images of ``images`` with such a package, which needs iniconfig; their other layers are made already."""
    folder = tmp_path_factory.mktemp("extra")
    (folder / "warmth.py").write_text(REWARD.format(dependency="iniconfig", name="IniConfig"))
    (folder / "requirements.txt").write_text("iniconfig\nnumpy>=1\n")
    build = [sys.executable, str(ROOT / "images" / "build.py"), "--tag", f"{TAG}-extra", "--flags=--network=host"]
    wheels = sorted(tmp_path_factory.getbasetemp().glob("torch*/torch-*.whl"))
    done = subprocess.run(
        [*build, "--torch", str(wheels[0]), "--extra", str(folder)], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return {stage: f"marble-{stage}:{TAG}-extra" for stage in ("prepare", "train", "evaluate")}


@pytest.mark.parametrize("stage", ["prepare", "train", "evaluate"])
def test_the_package_is_there_may_be_run_and_has_what_it_needs_where_it_is_run(with_extra: dict[str, str], stage: str) -> None:
    if stage == "prepare":
        code = LOOK.replace("import warmth, ", "import ")
        assert in_image(with_extra[stage], code) == "warmth False", "prepare looks for the class and computes nothing"
    else:
        assert in_image(with_extra[stage], LOOK) == "warmth True"
        assert in_image(with_extra[stage], FOUND) == "Warmth"


def test_train_and_evaluate_still_share_every_layer_but_the_last(with_extra: dict[str, str]) -> None:
    inspected = [json.loads(docker("image", "inspect", with_extra[stage]))[0]["RootFS"] for stage in ("train", "evaluate")]
    assert inspected[0]["Layers"][:-1] == inspected[1]["Layers"][:-1]


def test_containers_here_run_a_reward_from_a_directory_of_the_python_path(
    images: dict[str, str], services: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "warmth.py").write_text(REWARD.format(dependency="tinydep", name="scale"))
    (tmp_path / "mine" / "tinydep.py").write_text("def scale(x): return x\n")
    settings = [
        'rewards=[{name: warmth, scorer: "warmth:Warmth", options: {factor: 2}}]', "train.steps=1", "train.processes=1",
        "optimizer.lr=1e-2", "rollout.prompts=6", "rollout.images_per_prompt=4", "rollout.steps=3", "loss.timesteps=2",
        "data.train_size=30", "data.evaluation_size=8", "evaluation.steps=3", "evaluation.resamples=200", "registry.model=own-class",
    ]  # fmt: skip
    pairs = [word for pair in settings for word in ("--set", pair)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path / "mine")}
    command = [sys.executable, "-m", "marble_core.cli", "run", "--run-id", "own-class", "--containers", "--tag", TAG, *pairs]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode in (0, REFUSED), done.stdout + done.stderr
    scores = next((tmp_path / ".marble" / "runs" / "own-class").rglob("scores.jsonl")).read_text().splitlines()
    assert all("warmth" in json.loads(line)["trained"] for line in scores)
