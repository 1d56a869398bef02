"""The evaluation: base, champion and trained LoRA draw the same held-out prompts from the same noise, and are scored alike."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marble_core import __version__
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import EVALUATION, IMAGES, SCORES
from marble_core.evaluation import lacking
from marble_core.evaluation.results import ROLES, Evaluation, Incumbent
from marble_core.evaluation.shared_roles import Sampled, SharedRoles
from marble_core.evaluation.statistics import CONFIDENCE, alarms, compare, diversity
from marble_core.runtime import progress
from marble_core.runtime.seeding import derive
from marble_core.storage.catalogue import base_of
from marble_core.storage.lora_place import lora_file
from marble_core.types import SOURCES, MarbleError, Prompt, RewardTable, Scorer

if TYPE_CHECKING:
    from marble_core.models import DiffusionModel
    from marble_core.models.policy import Policy

PICTURES_PER_SOURCE = 48


def run_evaluation(
    config: RunConfig,
    prompts: Sequence[Prompt],
    adapter: Path,
    out: Path,
    incumbent: Incumbent | None = None,
    shared: SharedRoles | None = None,
) -> Evaluation:
    """Sample the models on the same prompts with the same noise, score them, and write the result under ``out``.

    The noise of prompt i depends on (evaluation.seed, i) alone. Written are ``evaluation.json`` and ``images/`` (see results.py),
    with pictures of the first 48 prompts of each source; evaluation.json comes last. Raises MarbleError for a LoRA that is not the
    base's, and for an image that is not finite; a reward that fails costs the values of its images; a champion that does not fit the base is left out, and
    the result says so. With ``shared`` the base is sampled only where no evaluation has done it there before.
    """
    from marble_core.models.policy import Policy
    from marble_core.rewards.registry import load_scorers

    assert config.evaluation.batch_size, "resolve_batch_sizes comes first"
    policy = Policy.load(config)
    policy.load_adapter(adapter, config.lora.rank)
    incumbent = loaded(policy, incumbent or Incumbent())
    adapters = {"base": "off", "trained": "default"} | ({"champion": "champion"} if incumbent.adapter else {})
    work = _Evaluator(
        config,
        prompts,
        load_scorers(config.measured, config.model.offloads_scorers),
        Path(out) / IMAGES,
        [r for r in ROLES if r in adapters],
    )
    found = {role: work.sampled(role, policy, adapters[role], shared if role == "base" else None) for role in work.roles}
    tables = {role: own.table for role, own in found.items()}
    work.write_scores(tables)
    evaluation = work.evaluation(tables, {role: own.distances_M for role, own in found.items()})
    evaluation = replace(evaluation, champion_version=incumbent.version, no_champion=incumbent.absent)
    said = (*alarms(evaluation), *lacking.alarms(evaluation.lacking, config.measured))
    evaluation = replace(evaluation, alarms=said, settings=_settings(config, prompts, Path(adapter), work.scorers))
    evaluation.save(Path(out) / EVALUATION)
    return evaluation


def measure(
    config: RunConfig, prompts: Sequence[Prompt], adapter: Path | None, out: Path
) -> tuple[dict[str, RewardTable], dict[str, Any]]:
    """The rewards of the base, and of ``trained`` where there is an ``adapter``, by role; and the settings that go with them.

    Sampled as run_evaluation does, and compared with nothing. ``images/`` is written under ``out``.
    """
    from marble_core.models.policy import Policy
    from marble_core.rewards.registry import load_scorers

    policy = Policy.load(config)
    adapters = {"base": "off"}
    if adapter:
        policy.load_adapter(adapter)
        adapters["trained"] = "default"
    scorers = load_scorers(config.measured, config.model.offloads_scorers)
    work = _Evaluator(config, prompts, scorers, Path(out) / IMAGES, list(adapters))
    tables = {}
    for role, name in adapters.items():
        with policy.using(name) as model:
            tables[role] = work.score(role, model)
    work.write_scores(tables)
    return tables, _settings(config, prompts, adapter, scorers)


def loaded(policy: Policy, incumbent: Incumbent) -> Incumbent:
    """The champion's LoRA as the adapter ``champion``; or none, where it does not fit this base model."""
    if incumbent.adapter is not None:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are what is wanted
                policy.load_adapter(incumbent.adapter, name="champion")
        except MarbleError as error:
            return Incumbent(
                incumbent.version, absent=f"The champion, version {incumbent.version}, is not compared with: {error}"
            )
    return incumbent


@dataclass
class _Evaluator:
    """One evaluation's sampling: what does not change from model to model, and how far it is."""

    config: RunConfig
    prompts: Sequence[Prompt]
    scorers: Sequence[Scorer]
    directory: Path
    roles: Sequence[str]
    done: int = 0

    def __post_init__(self) -> None:
        e = self.config.evaluation
        self.seeds = [derive(e.seed, "evaluation", i) for i in range(len(self.prompts))]
        self.pictured = _first_of_each_source(self.prompts, PICTURES_PER_SOURCE)
        self.clip = _clip(self.scorers)
        count = e.diversity_prompts if self.clip else 0
        self.varied = [self.prompts[i] for i in _evenly(self.prompts, count)]
        self.total = len(self.roles) * (len(self.prompts) + len(self.varied) * e.diversity_images)
        self.directory.mkdir(parents=True, exist_ok=True)

    def sampled(self, role: str, policy: Policy, adapter: str, shared: SharedRoles | None) -> Sampled:
        """The role's rewards and distances; from ``shared`` where they are there."""

        def sample() -> Sampled:
            with policy.using(adapter) as model:
                return Sampled(self.score(role, model), self.distances(role, model))

        return shared.get(role, self.depends_on(policy), self.directory, sample) if shared else sample()

    def depends_on(self, policy: Policy) -> dict[str, Any]:
        """All that a role without a LoRA depends on; ready for JSON."""
        config, settings = self.config.model_dump(mode="json"), _settings(self.config, self.prompts, None, self.scorers)
        return {
            "model": config["model"] | {"revision": settings["revision"], "device": policy.model.device.type},
            "evaluation": config["evaluation"],
            "rewards": [*config["rewards"], *config["evaluation"]["rewards"]],
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "versions": {"marble": __version__, **settings["versions"]},
        }

    def score(self, role: str, model: DiffusionModel) -> RewardTable:
        """Every prompt's picture, scored a batch at a time; those of the first prompts are kept as files."""
        from PIL import Image

        from marble_core.rewards.scoring import score_all

        tables = []
        for start in range(0, len(self.prompts), self.config.evaluation.batch_size):
            part = slice(start, start + self.config.evaluation.batch_size)
            images_NHWC = self._sample(role, model, self.prompts[part], self.seeds[part])
            tables.append(lacking.finite(score_all(self.scorers, images_NHWC, self.prompts[part], go_on=True)))
            for i, image in enumerate(images_NHWC, start):
                if i in self.pictured:
                    Image.fromarray(image).save(self.directory / picture_name(role, i))
        return RewardTable.concatenate(tables)

    def distances(self, role: str, model: DiffusionModel) -> np.ndarray:
        """Mean pairwise cosine distance (M,) of the pictures of each prompt that diversity is measured on."""
        e = self.config.evaluation
        if not self.varied:
            return np.zeros(0)
        seeds = [derive(e.seed, "diversity", i) for i in range(len(self.varied) * e.diversity_images)]
        features_ND = self.clip.image_features(self._sample(role, model, self.varied, seeds)).double().numpy()
        return mean_distances(features_ND.reshape(len(self.varied), e.diversity_images, -1))

    def evaluation(self, tables: Mapping[str, RewardTable], distances: Mapping[str, np.ndarray]) -> Evaluation:
        """What was found, without what only the caller knows."""
        e, held_out = self.config.evaluation, [reward.name for reward in self.config.evaluation.rewards]
        base, trained, champion = tables["base"], tables["trained"], tables.get("champion")
        found = compare(base, trained, self.prompts, e.resamples, e.seed, champion, held_out)
        if self.varied:
            return replace(found, diversity=diversity(distances, self.varied, e.diversity_images, e.resamples, e.seed))
        if e.diversity_prompts:
            note = "Diversity was not measured, for no reward has CLIP's image features: add clipscore to evaluation.rewards."
            return replace(found, notes=(*found.notes, note))
        return found

    def write_scores(self, tables: Mapping[str, RewardTable]) -> None:
        """scores.jsonl, one line a prompt."""
        lines = []
        for i, prompt in enumerate(self.prompts):
            row: dict[str, Any] = {"index": i, "prompt": prompt.text, "source": prompt.source, "noise_seed": self.seeds[i]}
            for role, table in tables.items():
                row[role] = {n: float(r) for n, r in zip(table.names, table.R_NK[i], strict=True) if not np.isnan(r)}
                if why := {table.names[k]: text for (j, k), text in table.missing.items() if j == i}:
                    row.setdefault("missing", {})[role] = why
            if i in self.pictured:
                row["pictures"] = {role: picture_name(role, i) for role in tables}
            lines.append(json.dumps(row, ensure_ascii=False))
        (self.directory / SCORES).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _sample(self, role: str, model: DiffusionModel, prompts: Sequence[Prompt], seeds: Sequence[int]) -> np.ndarray:
        from marble_core.models.sampling import sample

        def show(images_NHWC: np.ndarray) -> None:
            self.done += len(images_NHWC)
            progress.emit("evaluate", done=self.done, total=self.total, note=role)

        e = self.config.evaluation
        return sample(
            model, [p.text for p in prompts], seeds, e.solver, e.steps, e.batch_size, show, self.config.model.precision
        )[1]


def picture_name(role: str, index: int) -> str:
    return f"{role}-{index:03d}.png"


def mean_distances(features_MID: np.ndarray) -> np.ndarray:
    """Of each group of G unit vectors, the mean of 1 - cosine over its G (G - 1) / 2 pairs."""
    count = features_MID.shape[1]
    similar_M = (np.square(features_MID.sum(axis=1)).sum(axis=-1) - count) / (count * (count - 1))
    return np.maximum(1 - similar_M, 0)  # equal pictures, but for rounding


def _clip(scorers: Sequence[Scorer]) -> Any:
    """The image features of the first reward that has CLIP's: they are loaded already, and cost one more forward a picture."""
    from marble_core.rewards.clip import Clip

    return next((found for scorer in scorers if isinstance(found := getattr(scorer, "clip", None), Clip)), None)


def _first_of_each_source(prompts: Sequence[Prompt], count: int) -> set[int]:
    return {i for source in SOURCES for i in [i for i, p in enumerate(prompts) if p.source == source][:count]}


def _evenly(prompts: Sequence[Prompt], count: int) -> list[int]:
    """``count`` prompts of different texts, in turn from each source, in its order."""
    firsts = {(p.source, p.text): i for i, p in reversed(list(enumerate(prompts)))}
    sources = {source: sorted(i for (own, _), i in firsts.items() if own == source) for source in SOURCES}
    in_turn = sorted((rank, i) for own in sources.values() for rank, i in enumerate(own))
    return sorted(i for _, i in in_turn[:count])


def _settings(config: RunConfig, prompts: Sequence[Prompt], adapter: Path | None, scorers: Sequence[Scorer]) -> dict[str, Any]:
    e, m = config.evaluation, config.model
    texts = "\n".join(f"{p.source}\t{p.text}" for p in prompts)
    file = lora_file(adapter) if adapter else None
    return {
        "model": m.path,
        "revision": base_of(m).revision,  # what lies in the cache: a branch may have moved since
        "adapter_sha256": {file.name: _sha256(file.read_bytes())} if file else {},
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
        "rewards": {s.name: s.settings for s in scorers if hasattr(s, "settings")},
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
