"""Explorers of evaluations of any size."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from marble_core.evaluation.gate import decide
from marble_core.evaluation.results import ROLES
from marble_core.report import write_explorer
from report_builders import NAMES, a_config, an_evaluation, with_champion, write_history, write_pictures

PROMPT = '<script>alert("x")</script> a red circle'
STEPS = (0, 10, 20, 30, 32)


def written_explorer(directory: Path) -> Path:
    """144 prompts of 64 px, three roles, random scores, a training of 32 steps with five grids of samples."""
    images = write_pictures(directory / "images", size=64, per_source=48, prompt=PROMPT, roles=ROLES)
    _score(images)
    _sample(directory, STEPS)
    return _write(directory, images)


def written_large_explorer(directory: Path, roles: tuple[str, ...] = ("base", "trained"), steps: Sequence[int] = ()) -> Path:
    """300 prompts of 512 px, and a training with a grid of samples at each of ``steps``."""
    images = directory / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for k in range(12):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        coarse.resize((512, 512), Image.Resampling.BICUBIC).save(images / f"{k}.png")
    lines = []
    for i in range(300):
        files = {role: f"{role}-{i:03d}.png" for role in roles}
        for k, name in enumerate(files.values()):
            os.link(images / f"{(2 * i + k) % 12}.png", images / name)
        lines.append({"index": i, "prompt": f"{PROMPT} {i}", "source": "general", "pictures": files})
        lines[-1] |= {role: {n: float(rng.normal()) for n in NAMES} for role in files}
    (images / "scores.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    if steps:
        _sample(directory, steps)
    return _write(directory, images)


def scores_of(page: Path) -> list[dict]:
    return [json.loads(line) for line in (page.parent / "images" / "scores.jsonl").read_text("utf-8").splitlines()]


def _sample(directory: Path, steps: Sequence[int]) -> None:
    samples = directory / "samples"
    samples.mkdir()
    (samples / "prompts.json").write_text(json.dumps([["a", "b"], ["c", "d"], ["e", "f"]]), encoding="utf-8")
    for step in steps:
        grid_HWC = np.random.default_rng(step).integers(0, 256, (192, 128, 3), dtype=np.uint8)
        Image.fromarray(grid_HWC).save(samples / f"step-{step:06d}.png")


def _score(images: Path) -> None:
    rng, path = np.random.default_rng(1), images / "scores.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line |= {role: {n: float(rng.normal()) for n in NAMES} for role in ROLES}
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def _write(directory: Path, images: Path) -> Path:
    config, evaluation = a_config(), with_champion(an_evaluation())
    history = write_history(directory / "history.jsonl", 32)
    page = directory / "explorer.html"
    write_explorer(page, evaluation, decide(evaluation, config.registry), history, images, config, "wednesday")
    return page
