"""Studies for tests: a tiny one, a checkout of the code to run it from, and cells as a study leaves them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

from marble_core.evaluation.cell import Cell, CellEvaluation, as_column
from marble_core.evaluation.results import Alarm, Diversity, Estimate
from paths import ROOT

TINY = [
    "rollout.prompts=3", "rollout.images_per_prompt=3", "rollout.steps=2", "loss.timesteps=1", "data.train_size=30",
    "data.evaluation_size=4", "train.checkpoint_every=1", "train.steps=2", "lora.rank=4", "evaluation.steps=2",
    "evaluation.resamples=100", "evaluation.diversity_prompts=3", "optimizer.eta_rate=0.2",
    ("rewards=[{name: clipscore, options: {checkpoint: 'demo://rewards/clip'}}, "
    "{name: geneval, options: {detector: 'marble_core.demo.shapes:ShapesDetector'}}]"),
]  # fmt: skip


def git(directory: Path, *arguments: str) -> str:
    who = {f"GIT_{role}_{key}": "tester@localhost" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **who}).stdout.strip()


def a_checkout(directory: Path, whole: bool = False) -> Path:
    """A git repository with one commit: the code as it is here, or a package of one file."""
    if whole:
        for package in ("marble_core", "marble_kubeflow"):
            shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        (directory / "marble_core").mkdir(parents=True)
        (directory / "marble_core" / "__init__.py").write_text("__version__ = '1'\n")
    (directory / ".gitignore").write_text("__pycache__/\n")
    git(directory, "init", "--quiet")
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", "begin")
    return directory


NAMES = ("clipscore", "ocr", "geneval")


def a_cell(arm: str, seed: int, gain: float, steps: tuple[int, ...] = (2, 4), prompts: int = 30, **changes: object) -> Cell:
    """Base scores of std 1 that are the same for all arms and seeds; ocr applies to its own source; the gain grows to ``gain``."""
    sources = tuple(source for source in ("general", "ocr", "geneval") for _ in range(prompts))
    rng = np.random.default_rng(0)
    base = {name: rng.normal(size=len(sources)) for name in NAMES}
    base["ocr"][[source != "ocr" for source in sources]] = np.nan
    noise = np.random.default_rng(seed + 1)
    d = {name: noise.normal(0.1, 0.3, size=len(sources)) - 0.1 for name in NAMES}
    evaluations = {}
    for step in steps:
        own = {name: as_column(list(base[name] + d[name] + gain * step / steps[-1]), 4) for name in NAMES}
        alarm = (Alarm("mode collapse", "The images became more alike."),) if gain > 0.5 else ()
        change = Diversity(6, 4, 0.5, 0.4, Estimate(-0.2, -0.3, -0.1))
        mean = gain * step / steps[-1]
        g = Estimate(mean, mean - 0.1, mean + 0.1)
        evaluations[step] = CellEvaluation(dict.fromkeys(NAMES, g), g, alarm, change, "ab", own)
    count = steps[-1]
    history = {f"alpha/{name}": as_column([1 / 3] * count) for name in NAMES}
    history |= {f"reward/{name}/mean": as_column([0.1 * s + seed for s in range(count)]) for name in NAMES}
    measuring = {"solver": "euler", "steps": 12, "noise_seed": 4242, "prompts_sha256": "1"}
    values = {
        "arm": arm, "seed": seed, "commit": "c" * 40, "versions": {"torch": "2"}, "config": "0" * 12, "rewards": NAMES,
        "held_out": (), "measuring": measuring, "sources": sources, "texts": tuple(range(len(sources))),
        "base": {name: as_column(list(column), 4) for name, column in base.items()}, "evaluations": evaluations,
        "steps": tuple(range(1, count + 1)), "history": history,
    }  # fmt: skip
    return Cell(**{**values, **changes})  # type: ignore[arg-type]
