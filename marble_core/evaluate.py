"""The paired comparison on held-out prompts: base and trained LoRA, same prompts, same noise, with bootstrap intervals.

compare() is pure numpy; run_evaluation() samples, scores and writes ``evaluation.json`` and ``images/``. No torch at import:
the gate reads an Evaluation without it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from marble_core import progress
from marble_core.config import RunConfig
from marble_core.seeding import derive
from marble_core.types import SOURCES, MarbleError, Prompt, RewardTable

CONFIDENCE = 0.95
PICTURES_PER_SOURCE = 48
FEW_PROMPTS = 20  # below this no bootstrap interval is to be relied on
SCORES_FILE = "scores.jsonl"


@dataclass(frozen=True)
class Estimate:
    """A point estimate and the ends of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class RewardResult:
    """One reward over the ``n`` held-out prompts to which it applies, in the reward's own units.

    ``difference`` is the paired mean of trained - base, ``base_std`` the population std of the base's reward over prompts,
    ``win_rate`` the share of prompts on which the trained model scores higher, a tie counting half.
    """

    n: int
    base: float
    trained: float
    difference: Estimate
    base_std: float
    win_rate: float

    @property
    def digits(self) -> int:
        """Decimals at which a hundredth of ``base_std`` shows."""
        return int(np.clip(2 - np.floor(np.log10(self.base_std)), 2, 6)) if self.base_std > 0 else 3


@dataclass(frozen=True)
class Evaluation:
    """What the gate and the report read. ``settings`` say how the numbers came about and travel with them.

    ``mean_gain`` is the mean over rewards of difference / base_std. A reward that applies to no prompt is in ``missing``.
    ``side`` has what scorers report beside their rewards (``geneval/strict``), of which neither gain nor gate knows.
    """

    rewards: Mapping[str, RewardResult]
    by_source: Mapping[str, Mapping[str, RewardResult]]
    mean_gain: Estimate
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    side: Mapping[str, RewardResult] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        Path(path).write_bytes(_FORMAT.dump_json(self, indent=2) + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Raises MarbleError if the file cannot be read or is no evaluation."""
        try:
            return _FORMAT.validate_json(Path(path).read_bytes())
        except OSError as error:
            raise MarbleError(f"The evaluation {path} cannot be read: {error.strerror}.") from None
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"])) or "the file"
            raise MarbleError(f"{path} is not an evaluation ({at}: {first['msg']}); run the evaluate stage again.") from None


_FORMAT = TypeAdapter(Evaluation)


def compare(
    base: RewardTable,
    trained: RewardTable,
    prompts: Sequence[Prompt],
    resamples: int,
    seed: int,
    settings: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Compare two tables whose row i is the same prompt and the same noise.

    Intervals are percentiles over ``resamples`` paired bootstrap resamples. A resample draws prompts (distinct texts) with
    replacement within each source and serves all rewards at once, so the mean gain's interval knows how the rewards move together.
    Raises ValueError if the tables do not fit together, and MarbleError if no reward applies to any prompt.
    """
    if base.names != trained.names or base.R_NK.shape != trained.R_NK.shape or len(base.R_NK) != len(prompts):
        raise ValueError("base, trained and prompts do not describe the same rewards and prompts")
    if (base.mask_NK != trained.mask_NK).any() or np.isinf(base.R_NK).any() or np.isinf(trained.R_NK).any():
        raise ValueError("base and trained must be finite on the same prompts")
    sources = np.array([p.source for p in prompts])
    W_RN = _resamples(prompts, resamples, seed)

    rewards: dict[str, RewardResult] = {}
    by_source: dict[str, dict[str, RewardResult]] = {}
    gains: list[tuple[float, np.ndarray]] = []
    for name, b_N, t_N in zip(base.names, base.R_NK.T, trained.R_NK.T, strict=True):
        applies_N = ~np.isnan(b_N)
        if not applies_N.any():
            continue
        rewards[name], gain_R = _result(b_N, t_N, applies_N, prompts, W_RN)
        if rewards[name].base_std > 0:
            gains.append((rewards[name].difference.mean / rewards[name].base_std, gain_R))
        for source in SOURCES:
            if (own_N := applies_N & (sources == source)).any():
                by_source.setdefault(source, {})[name] = _result(b_N, t_N, own_N, prompts, W_RN)[0]
    if not rewards:
        raise MarbleError("No reward applies to any held-out prompt; add held-out prompts that the rewards apply to.")

    mean_gain = Estimate(0.0, 0.0, 0.0)
    if gains:
        means, draws_KR = zip(*gains, strict=True)
        mean_gain = _estimate(float(np.mean(means)), np.nanmean(draws_KR, axis=0), _smallest(prompts))
    side = {
        name: _result(b_N, trained.side[name], ~np.isnan(b_N), prompts, W_RN)[0]
        for name, b_N in base.side.items()
        if not np.isnan(b_N).all()
    }
    missing = tuple(n for n in base.names if n not in rewards)
    notes = _notes(base, trained, rewards, missing)
    return Evaluation(rewards, by_source, mean_gain, missing, notes, dict(settings or {}), side)


def run_evaluation(config: RunConfig, prompts: Sequence[Prompt], adapter: Path, out: Path) -> Evaluation:
    """Sample base and trained on the same prompts with the same noise, score both, and write the result under ``out``.

    The noise of prompt i depends on (evaluation.seed, i) alone. Written are ``evaluation.json``, ``images/scores.jsonl`` (one
    line a prompt: prompt, source, noise_seed, scores, picture names) and ``images/base-000.png``, ``images/trained-000.png``
    for the first 48 prompts of each source.
    """
    from marble_core.policy import Policy
    from marble_core.rewards import load_scorers, score_all
    from marble_core.rollout import sample

    e = config.evaluation
    seeds = [derive(e.seed, "evaluation", i) for i in range(len(prompts))]
    policy = Policy.load(config)
    policy.load_adapter(adapter, config.lora.rank)
    scorers = load_scorers(config.rewards, config.model.offloads_scorers)
    images: dict[str, np.ndarray] = {}
    for role, lora in (("base", "off"), ("trained", "default")):
        batches = []
        for start in range(0, len(prompts), e.batch_size):
            progress.emit("evaluate", done=start + len(images) * len(prompts), total=2 * len(prompts), note=f"sampling {role}")
            part = slice(start, start + e.batch_size)
            with policy.using(lora) as model:
                texts = [p.text for p in prompts[part]]
                batches.append(sample(model, texts, seeds[part], e.solver, e.steps, e.batch_size)[1])
        images[role] = np.concatenate(batches)
    progress.emit("evaluate", done=2 * len(prompts), total=2 * len(prompts), note="scoring")
    tables = {role: _finite(score_all(scorers, images_NHWC, prompts), prompts) for role, images_NHWC in images.items()}

    evaluation = compare(
        tables["base"],
        tables["trained"],
        prompts,
        e.resamples,
        e.seed,
        _settings(config, prompts, Path(adapter))
        | {"rewards": {s.name: s.settings for s in scorers if hasattr(s, "settings")}},
    )
    _save_pictures(Path(out) / "images", prompts, seeds, images, tables)
    evaluation.save(Path(out) / "evaluation.json")
    return evaluation


def _finite(table: RewardTable, prompts: Sequence[Prompt]) -> RewardTable:
    """The table, unless a reward failed on a prompt (+inf, see score_all)."""
    for i, k in np.argwhere(np.isinf(table.R_NK))[:1]:
        raise MarbleError(f"The reward {table.names[k]!r} is not finite for the prompt {prompts[i].text!r}; mend the scorer.")
    return table


def _resamples(prompts: Sequence[Prompt], resamples: int, seed: int) -> np.ndarray:
    """W_RN: how often resample r drew prompt i; every source keeps its number of distinct texts.

    A text that was asked for several times is drawn with all its pictures, for they say little more than one does.
    """
    rng = np.random.default_rng(derive(seed, "bootstrap"))
    texts = {text: c for c, text in enumerate(dict.fromkeys((p.source, p.text) for p in prompts))}
    sources = np.array([source for source, _ in texts])
    W_RC = np.zeros((resamples, len(texts)))
    for source in np.unique(sources):
        own = np.flatnonzero(sources == source)
        W_RC[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=resamples)
    return W_RC[:, [texts[p.source, p.text] for p in prompts]]


def _result(
    b_N: np.ndarray, t_N: np.ndarray, use_N: np.ndarray, prompts: Sequence[Prompt], W_RN: np.ndarray
) -> tuple[RewardResult, np.ndarray]:
    """The result over the prompts in ``use_N``, and difference / base_std of every resample (NaN where it drew none)."""
    b, d = b_N[use_N], (t_N - b_N)[use_N]
    std = 0.0 if b.max() == b.min() else float(b.std())  # equal numbers may differ from their mean in the last bit
    centred = b - b.mean()
    drawn_R, d_R, b_R, b2_R = (W_RN[:, use_N] @ np.stack([np.ones_like(b), d, centred, centred**2], axis=1)).T
    with np.errstate(invalid="ignore"):
        d_R, b_R, b2_R = d_R / drawn_R, b_R / drawn_R, b2_R / drawn_R
        # A resample of a rarely met reward can be nearly constant; its unit is kept from collapsing.
        std_R = np.sqrt(np.maximum(b2_R - b_R**2, (std / 2) ** 2))
        gain_R = d_R / std_R if std > 0 else d_R
    win_rate = float(np.mean((d > 0) + 0.5 * (d == 0)))
    difference = _estimate(float(d.mean()), d_R, _smallest([p for p, used in zip(prompts, use_N, strict=True) if used]))
    return RewardResult(len(b), float(b.mean()), float(t_N[use_N].mean()), difference, std, win_rate), gain_R


def _smallest(prompts: Sequence[Prompt]) -> int:
    """The number of distinct texts of the source that has fewest."""
    return min(Counter(source for source, _ in {(p.source, p.text) for p in prompts}).values())


def _estimate(mean: float, draws_R: np.ndarray, n: int) -> Estimate:
    """Percentiles of the resamples, with tails expanded for a smallest source of ``n`` prompts.

    Plain percentiles are too short by about sqrt((n - 1) / n) and know the normal for Student's t, here approximated by
    z + (z^3 + z) / 4(n - 1) (Hesterberg, arXiv 1411.5279: the expanded percentile interval).
    """
    normal, free = NormalDist(), max(n - 1, 1)
    z = normal.inv_cdf((1 + CONFIDENCE) / 2)
    tail = normal.cdf(-((n / free) ** 0.5) * (z + (z**3 + z) / (4 * free)))
    low, high = np.nanquantile(draws_R, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high))


def _notes(
    base: RewardTable, trained: RewardTable, rewards: Mapping[str, RewardResult], missing: Sequence[str]
) -> tuple[str, ...]:
    notes = [f"{name} applies to no held-out prompt, so nothing is known about it." for name in missing]
    notes += [f"{n} rests on only {r.n} prompts: do not rely on its interval." for n, r in rewards.items() if r.n < FEW_PROMPTS]
    flat = [n for n, r in rewards.items() if r.base_std == 0]
    notes += [f"The base scores the same on every prompt in {n}, so it is left out of the mean gain." for n in flat]
    if np.array_equal(base.R_NK, trained.R_NK, equal_nan=True):
        notes.append("Base and trained model score exactly the same: the LoRA does nothing.")
    return tuple(notes)


def _settings(config: RunConfig, prompts: Sequence[Prompt], adapter: Path) -> dict[str, Any]:
    e, m = config.evaluation, config.model
    texts = "\n".join(f"{p.source}\t{p.text}" for p in prompts)
    return {
        "model": m.path,
        "revision": m.revision,
        "adapter_sha256": {p.name: _sha256(p.read_bytes()) for p in sorted(adapter.glob("*.safetensors"))},
        "solver": e.solver,
        "steps": e.steps,
        "guidance_scale": 1.0,
        "height": m.height,
        "width": m.width,
        "precision": m.precision,
        "t5": m.t5,
        "vae_tiling": m.vae_tiling,
        "noise_seed": e.seed,
        "batch_size": e.batch_size,
        "images_per_prompt": 1,
        "prompts": dict(Counter(p.source for p in prompts)),
        "prompts_sha256": _sha256(texts.encode()),
        "resamples": e.resamples,
        "confidence": CONFIDENCE,
        "config_digest": config.digest,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _save_pictures(
    directory: Path,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    images: Mapping[str, np.ndarray],
    tables: Mapping[str, RewardTable],
) -> None:
    from PIL import Image

    directory.mkdir(parents=True, exist_ok=True)
    saved: Counter[str] = Counter()
    lines = []
    for i, prompt in enumerate(prompts):
        row: dict[str, Any] = {"index": i, "prompt": prompt.text, "source": prompt.source, "noise_seed": seeds[i]}
        for role, table in tables.items():
            row[role] = {n: float(r) for n, r in zip(table.names, table.R_NK[i], strict=True) if not np.isnan(r)}
        if saved[prompt.source] < PICTURES_PER_SOURCE:
            saved[prompt.source] += 1
            row["pictures"] = {role: f"{role}-{i:03d}.png" for role in images}
            for role, name in row["pictures"].items():
                Image.fromarray(images[role][i]).save(directory / name)
        lines.append(json.dumps(row, ensure_ascii=False))
    (directory / SCORES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
