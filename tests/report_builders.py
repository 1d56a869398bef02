"""What a report or a comparison is made of, and pages of both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from marble_core.config.loading import load_config
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import WATCH
from marble_core.evaluation.gate import decide
from marble_core.evaluation.results import (
    ROLES,
    Alarm,
    Champion,
    Diversity,
    Estimate,
    Evaluation,
    RewardResult,
    Together,
    Variant,
    Versus,
    Votes,
)
from marble_core.evaluation.watch import Look, Record
from marble_core.report import write_comparison, write_report
from marble_core.tracking.finished_runs import FinishedRun, local_run
from marble_core.tracking.past_runs import PastRun

NAMES = ("clipscore", "ocr", "geneval")


def a_config() -> RunConfig:
    loaded = load_config("demo", overrides=["train.steps=6", "balance.method=marble"])
    return loaded.model_copy(update={"rewards": tuple(r for r in loaded.rewards if r.name in NAMES)})


def an_evaluation(**differences: tuple[float, float, float]) -> Evaluation:
    given = {"clipscore": (0.0, -0.01, 0.01), "ocr": (-0.01, -0.05, 0.03), "geneval": (0.2, 0.1, 0.3)} | differences
    rewards = {n: RewardResult(96, 0.5, 0.5 + d[0], Estimate(*d), base_std=0.4, win_rate=0.5) for n, d in given.items()}
    by_source = {"general": {"clipscore": rewards["clipscore"]}, "ocr": rewards, "geneval": rewards}
    side = {"geneval/strict": RewardResult(96, 0.25, 0.375, Estimate(0.125, 0.1, 0.2), base_std=0.4, win_rate=0.5)}
    settings = {"solver": "euler", "prompts": {"ocr": 96}}
    return Evaluation(rewards, by_source, Estimate(0.2, 0.1, 0.3), settings=settings, side=side)


def with_champion(evaluation: Evaluation) -> Evaluation:
    """A champion half way to the trained model, diversity, and an alarm."""

    def halves(results: Mapping[str, RewardResult]) -> dict[str, Versus]:
        return {
            n: Versus((r.base + r.trained) / 2, Estimate(r.difference.mean / 2, -0.1, 0.3), 0.5) for n, r in results.items()
        }

    return replace(
        evaluation,
        champion=Champion(
            halves({**evaluation.measured, **evaluation.side}),
            {source: halves(own) for source, own in evaluation.by_source.items()},
            Estimate(0.1, 0.05, 0.15),
        ),
        champion_version="7",
        diversity=Diversity(24, 4, 0.5, 0.25, Estimate(-0.5, -0.6, -0.4), 0.375),
        alarms=(Alarm("mode collapse", "The images of one prompt became more alike: -50 percent."),),
    )


SHARE = Estimate(0.25, 0.2, 0.3)


def a_variant(
    guidance: float,
    strength: float,
    gain: float,
    change: float,
    fell: bool = False,
    model: Literal["base", "trained"] = "trained",
) -> Variant:
    """With a mean gain and a change of diversity that are known to a tenth; with ``fell`` ocr is shown to be lower."""
    rewards = dict(an_evaluation(**({"ocr": (-0.2, -0.3, -0.1)} if fell else {})).rewards)
    lost = Diversity(96, 4, 1.0, 1 + change, Estimate(change, change - 0.1, change + 0.1))
    g, lead = Estimate(gain, gain - 0.1, gain + 0.1), Estimate(0.2 - gain, 0.1 - gain, 0.3 - gain)
    name = f"{model}-s{strength:g}-g{guidance:g}"
    leads = {n: r.difference for n, r in rewards.items()}
    return Variant(
        name, model, guidance, strength, rewards, g, Together(SHARE, SHARE), lost, leads, lead, Estimate(-0.1, -0.2, 0.0)
    )


def with_variants(change: float, *variants: Variant) -> Evaluation:
    """Beside a trained model that gained .2 and changed diversity by ``change``."""
    d = Diversity(96, 4, 1.0, 1 + change, Estimate(change, change - 0.1, change + 0.1))
    parts = {"general": replace(d, prompts=32), "ocr": replace(d, prompts=64)}
    return replace(an_evaluation(), diversity=replace(d, by_source=parts), variants=variants, together=Together(SHARE, SHARE))


def write_pictures(
    directory: Path,
    size: int = 16,
    per_source: int = 14,
    prompt: str = "a red circle",
    roles: tuple[str, ...] = ("base", "trained"),
) -> Path:
    """Noise, which compresses worst. Beyond the first six of a source the reward changes by (row - 8)."""
    rng = np.random.default_rng(0)
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, source in enumerate(s for s in ("general", "ocr", "geneval") for _ in range(per_source)):
        pictures = {role: f"{role}-{i:03d}.png" for role in roles}
        for name in pictures.values():
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(directory / name)
        row = {"index": i, "prompt": f"{prompt} {i}", "source": source, "pictures": pictures}
        scores = {role: {"clipscore": 1.0} for role in roles} | {"trained": {"clipscore": 1.0 + i % per_source - 8}}
        lines.append(json.dumps(row | scores))
    (directory / "scores.jsonl").write_text("\n".join(lines))
    return directory


def write_history(path: Path, steps: int, skipped: tuple[int, ...] = (), tail: str = "", gram: bool = True) -> Path:
    lines = []
    for step in range(1, steps + 1):
        metrics = {f"reward/{n}/mean": 0.1 * step + k for k, n in enumerate(NAMES)} | {"time/sample": 5.0, "time/train": 15.0}
        if gram:
            metrics |= {f"alpha/{n}": 1 / 3 for n in NAMES} | {f"consistency/{n}": 0.1 for n in NAMES} | {"cosine/worst": 0.3}
            metrics |= {"cosine/clipscore:ocr": 0.98, "cosine/clipscore:geneval": 0.25, "cosine/ocr:geneval": -0.75}
            metrics |= {f"cosine/update:{n}": 0.5 for n in NAMES}
        bad = {"step": step, "metrics": {"skipped": 1.0}, "notes": ["reward ocr is not finite for the prompt 'x'"]}
        lines.append(json.dumps(bad if step in skipped else {"step": step, "metrics": metrics, "notes": []}))
    path.write_text("\n".join(lines) + "\n" + tail)
    return path


def a_look(step: int, *alarms: Alarm) -> Look:
    result = RewardResult(48, 2.0, 1.0, Estimate(-1.0, -1.5, -0.5), base_std=2.0, win_rate=0.1)
    return Look(
        step, "x", Estimate(0.01 * step, -0.1, 0.2), {}, {"colour_entropy": result}, {}, Estimate(-0.3, -0.4, -0.2), alarms
    )


def written_report(directory: Path) -> Path:
    """A page with everything on it."""
    config = a_config()
    roles = (
        a_variant(2, 1, 0.25, -0.3, model="base"), a_variant(1.5, 1, 0.1, -0.1, model="base"),
        a_variant(3, 1, 0.4, -0.6), a_variant(1, 0.5, 0.1, -0.15), a_variant(1.5, 0.5, 0.2, -0.3),
    )  # fmt: skip
    evaluation = with_champion(replace(an_evaluation(), variants=roles, together=Together(SHARE, SHARE)))
    evaluation = replace(evaluation, votes=Votes("champion", 120, 3, 40, Estimate(0.64, 0.51, 0.76)))
    images = write_pictures(directory / "images", prompt='<script>alert("x")</script> & co', roles=ROLES)
    history = write_history(directory / "history.jsonl", 6)
    Record([a_look(2), a_look(4, Alarm("reward hacking", "colour_entropy went to 1, while ocr rose."))]).save(directory / WATCH)
    means = {n: r.base for n, r in evaluation.measured.items()}
    past = [
        PastRun("monday", "2026-11-23", "marble", "promoted", (0.1, 0.05, 0.15), means, dict.fromkeys(means, 0.6), "7"),
        PastRun(
            "tuesday",
            "2026-11-24",
            "equal",
            "refused: worse",
            (0.0, -0.1, 0.1),
            dict.fromkeys(means, 0.4),
            dict.fromkeys(means, 0.7),
        ),
    ]
    page, decision = directory / "report.html", decide(evaluation, config.registry)
    write_report(page, evaluation, decision, history, images, config, past, "wednesday")
    return page


SETTINGS = {"prompts_sha256": "1", "noise_seed": 4242, "steps": 12}


def evaluated(gain: float = 0.2, settings: Mapping[str, Any] = SETTINGS, **differences: Any) -> Evaluation:
    return replace(an_evaluation(**differences), mean_gain=Estimate(gain, gain - 0.1, gain + 0.1), settings=dict(settings))


def lay_out(runs: Path, name: str, evaluation: Evaluation, method: str = "marble", skipped: tuple[int, ...] = ()) -> None:
    """A run's files as the local pipeline leaves them."""
    config = a_config()
    config = config.model_copy(update={"balance": config.balance.model_copy(update={"method": method})})
    here, adapter = (runs / name / "artifacts" / "marble-1" / stage for stage in ("evaluate/evaluation", "train/adapter"))
    for directory in (here, adapter):
        directory.mkdir(parents=True)
    evaluation.save(here / "evaluation.json")
    (here / "config.json").write_text(config.to_json())
    write_history(adapter / "history.jsonl", 6, skipped, gram=method == "marble")
    write_pictures(here / "images", per_source=7)


def three_runs(runs: Path) -> list[FinishedRun]:
    lay_out(runs, "monday", evaluated(0.5))
    lay_out(runs, "tuesday", evaluated(0.1, ocr=(-0.1, -0.2, -0.05)), "weighted_sum", skipped=(2, 3, 5))
    lay_out(runs, "wednesday", evaluated(0.15), "equal")
    return [found for name in ("monday", "tuesday", "wednesday") if (found := local_run(name, runs))]


def written_comparison(directory: Path) -> Path:
    write_comparison(directory / "comparison.html", three_runs(directory / "runs"))
    return directory / "comparison.html"
