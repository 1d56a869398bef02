"""How the models of an evaluation are sampled and scored: the same prompts, the same noise, one role after another.

Several processes (runtime/distributed.py) share the prompts. Each one's noise depends on its index alone, so their number changes
no more than a batch size does: the last bits. All processes end with the whole tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marble_core import __version__
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import SCORES
from marble_core.evaluation import lacking
from marble_core.evaluation.results import Evaluation
from marble_core.evaluation.roles import BASE, CHAMPION, TRAINED, Role, strongest_within
from marble_core.evaluation.settings import settings_of
from marble_core.evaluation.shared_roles import Sampled, SharedRoles
from marble_core.evaluation.statistics import compare, diversity
from marble_core.evaluation.variants import Measured
from marble_core.runtime import progress
from marble_core.runtime.seeding import derive
from marble_core.types import Prompt, RewardTable, Scorer, in_order

if TYPE_CHECKING:
    from marble_core.models.guidance import Guided
    from marble_core.models.policy import Policy

IMAGED_PER_SOURCE = 48
KEPT = (BASE, CHAMPION, TRAINED)  # and strengths that may be chosen


@dataclass
class Evaluator:
    """One evaluation's sampling: what does not change from model to model, and how many images this process has made. Images of the
    roles ``kept`` are files."""

    config: RunConfig
    prompts: Sequence[Prompt]
    scorers: Sequence[Scorer]
    directory: Path
    roles: Sequence[Role]
    variants: Sequence[Role] = ()
    kept: Sequence[Role] = KEPT
    done: int = 0

    def __post_init__(self) -> None:
        from marble_core.rewards.scoring import is_groupwise

        e = self.config.evaluation
        self.seeds = [derive(e.seed, "evaluation", i) for i in range(len(self.prompts))]
        self.with_images = _first_of_each_source(self.prompts, IMAGED_PER_SOURCE)
        self.clip = _clip(self.scorers)
        self.grouped = [scorer for scorer in self.scorers if is_groupwise(scorer)]
        self.guided: dict[float, Guided] = {}
        count = e.diversity_prompts if self.clip or self.grouped else 0
        self.varied_at = _evenly(self.prompts, count)
        self.varied = [self.prompts[i] for i in self.varied_at]
        self.all_roles = (*self.roles, *self.variants)
        self.candidates = self._candidates()
        self.total = len(self.all_roles) * (len(self.prompts) + len(self.varied) * e.diversity_images)
        self.directory.mkdir(parents=True, exist_ok=True)

    def sampled(self, role: Role, policy: Policy, shared: SharedRoles | None) -> Sampled:
        """The role's rewards and distances; of one that no training changes from ``shared`` where they are there. Several processes
        have no ``shared``: the second would wait for the first, which waits for its share."""

        def sample() -> Sampled:
            return self.grouping(role, policy, self.score(role, policy))

        if shared is None or not role.is_free_of_training:
            return sample()
        return shared.get(role.name, self.depends_on(role, policy), self.directory, sample)

    def _candidates(self) -> dict[str, Role]:
        """The strengths that may be promoted, by role; none where ``registry.diversity_loss`` is not set."""
        if self.config.registry.diversity_loss is None:
            return {}
        return {role.name: role for role in (TRAINED, *self.variants) if role.model == "trained" and role.guidance == 1}

    def chosen(self, found: Mapping[str, Sampled]) -> tuple[dict[str, Sampled], list[Role], float]:
        """With the strongest candidate within the limit as ``trained`` and the plain LoRA as a further role, which that one then is
        not; images change their names. Diversity alone chooses: no reward does, so no gain is too good by it."""
        if not (self.candidates and self.clip and self.varied):
            return dict(found), list(self.variants), 1.0
        base = found["base"].distances_M.mean()
        losses = {r.strength: 1 - float(found[name].distances_M.mean() / base) for name, r in self.candidates.items()}
        strength = strongest_within(losses, self.config.registry.diversity_loss or 0.0)
        if strength == 1:
            return dict(found), list(self.variants), 1.0
        (own,) = [role for role in self.candidates.values() if role.strength == strength]
        plain = Role("trained-s1", "default")
        roles = [plain if role == own else role for role in self.variants]
        moved = {own.name: TRAINED.name, TRAINED.name: plain.name}
        for before, after in sorted(moved.items(), key=lambda names: names[1], reverse=True):  # trained makes way first
            for i in self.with_images:
                (self.directory / image_name(before, i)).replace(self.directory / image_name(after, i))
        return {moved.get(name, name): own_found for name, own_found in found.items()}, roles, strength

    def depends_on(self, role: Role, policy: Policy) -> dict[str, Any]:
        """All that a role without a LoRA depends on; ready for JSON. Which other roles there are is no matter."""
        config = self.config.model_dump(mode="json")
        settings = settings_of(self.config, self.prompts, None, self.scorers, policy.model)
        return {
            "model": config["model"] | {"revision": settings["revision"], "device": policy.model.device.type},
            "guidance": role.guidance,
            "evaluation": {key: value for key, value in config["evaluation"].items() if key != "roles"},
            "rewards": [*config["rewards"], *config["evaluation"]["rewards"]],
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "versions": {"marble": __version__, **settings["versions"]},
        }

    def score(self, role: Role, policy: Policy) -> RewardTable:
        """Every prompt's image, scored a batch at a time; of the roles ``kept`` the first are files."""
        from PIL import Image

        from marble_core.rewards.scoring import is_groupwise, score_all
        from marble_core.runtime.distributed import every_nth

        tables, mine = [], every_nth(len(self.prompts)).tolist()
        single = [scorer for scorer in self.scorers if not is_groupwise(scorer)]
        for start in range(0, len(mine), self.config.evaluation.batch_size):
            part = mine[start : start + self.config.evaluation.batch_size]
            prompts = [self.prompts[i] for i in part]
            images_NHWC = self._sample(role, policy, prompts, [self.seeds[i] for i in part])
            tables.append(lacking.finite(score_all(single, images_NHWC, prompts, go_on=True)))
            for i, image in zip(part, images_NHWC, strict=True):
                if i in self.with_images and (role in self.kept or role.name in self.candidates):
                    Image.fromarray(image).save(self.directory / image_name(role.name, i))
        return _with_columns(_of_all(mine, tables), self.scorers)

    def grouping(self, role: Role, policy: Policy, table: RewardTable) -> Sampled:
        """With the images of the prompts that diversity is measured on: the mean pairwise cosine distance (M,) of each prompt's, and
        in the table the mean of each reward that scores whole groups."""
        from marble_core.rewards.scoring import score_all
        from marble_core.runtime.distributed import every_nth, gather

        e = self.config.evaluation
        if not self.varied:
            return Sampled(table, np.zeros(0))
        count, mine = e.diversity_images, every_nth(len(self.varied)).tolist()
        at = [m * count + i for m in mine for i in range(count)]  # of all images, those of this process
        distances_m, tables = np.zeros(0), []
        if mine:
            own = [self.varied[m] for m in mine]
            images_NHWC = self._sample(role, policy, own, [derive(e.seed, "diversity", i) for i in at])
            if self.clip:
                features_ND = self.clip.image_features(images_NHWC).double().numpy()
                distances_m = mean_distances(features_ND.reshape(len(own), count, -1))
            if self.grouped:
                prompts, every = [prompt for prompt in own for _ in range(count)], np.arange(len(at)) // count
                tables = [lacking.finite(score_all(self.grouped, images_NHWC, prompts, go_on=True, group_N=every))]
        distances_M = np.zeros(len(self.varied) if self.clip else 0)
        for theirs_m, found_m in gather((mine, distances_m)):
            distances_M[theirs_m if self.clip else []] = found_m
        if self.grouped:
            table = _with_groups(table, _of_all(at, tables), self.varied_at, count)
        return Sampled(table, distances_M)

    def evaluation(self, found: Mapping[str, Sampled]) -> Evaluation:
        """What was found, by role, without what only the caller knows. Writes scores.jsonl."""
        e, held_out = self.config.evaluation, self.config.held_out
        found, variants, strength = self.chosen(found)
        tables = {name: own.table for name, own in found.items()}
        distances = {name: own.distances_M for name, own in found.items()}
        self.write_scores(tables, distances)
        base, trained, champion = tables["base"], tables["trained"], tables.get("champion")
        compared = compare(base, trained, self.prompts, e.resamples, e.seed, champion, held_out)
        paired = dict(zip(tables, lacking.paired(list(tables.values())), strict=True))
        measured = Measured(
            self.prompts,
            paired,
            self.varied if self.clip else [],
            distances,
            compared.rewards,
            e.diversity_images,
            e.resamples,
            e.seed,
        )
        compared = replace(compared, variants=measured.variants(variants), strength=strength)
        if self.clip and self.varied:
            return replace(compared, diversity=diversity(distances, self.varied, e.diversity_images, e.resamples, e.seed))
        if e.diversity_prompts:
            note = "Diversity was not measured, for no reward has CLIP's image features: add clipscore to evaluation.rewards."
            return replace(compared, notes=(*compared.notes, note))
        return compared

    def write_scores(self, tables: Mapping[str, RewardTable], distances: Mapping[str, np.ndarray] | None = None) -> None:
        """scores.jsonl, one line a prompt."""
        lines = []
        for i, prompt in enumerate(self.prompts):
            row: dict[str, Any] = {"index": i, "prompt": prompt.text, "source": prompt.source, "noise_seed": self.seeds[i]}
            for role, table in tables.items():
                row[role] = {n: float(r) for n, r in zip(table.names, table.R_NK[i], strict=True) if not np.isnan(r)}
                if why := {table.names[k]: text for (j, k), text in table.missing.items() if j == i}:
                    row.setdefault("missing", {})[role] = why
            if i in self.with_images:
                row["pictures"] = {role.name: image_name(role.name, i) for role in self.kept if role.name in tables}
            if distances and self.clip and i in self.varied_at:
                row["distances"] = {role: float(d_M[self.varied_at.index(i)]) for role, d_M in distances.items()}
            lines.append(json.dumps(row, ensure_ascii=False))
        (self.directory / SCORES).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _which(self, role: Role) -> str:
        """The role, and which it is of all."""
        return f"{role.name}, {self.all_roles.index(role) + 1} of {len(self.all_roles)}"

    def _sample(self, role: Role, policy: Policy, prompts: Sequence[Prompt], seeds: Sequence[int]) -> np.ndarray:
        from marble_core.models.guidance import Guided
        from marble_core.models.sampling import sample
        from marble_core.runtime import distributed

        def show(images_NHWC: np.ndarray) -> None:
            self.done += len(images_NHWC)
            if distributed.rank() == 0:  # which has as many as any
                done = min(self.total, self.done * distributed.world())
                progress.emit("evaluate", done=done, total=self.total, note=self._which(role))

        e, precision = self.config.evaluation, self.config.model.precision
        with policy.using(role.adapter, role.strength) as model:
            if role.guidance != 1:
                if role.guidance not in self.guided:  # which encodes the empty prompt
                    self.guided[role.guidance] = Guided(model, role.guidance)
                model = self.guided[role.guidance]
            return sample(model, [p.text for p in prompts], seeds, e.solver, e.steps, e.batch_size, show, precision)[1]


def image_name(role: str, index: int) -> str:
    return f"{role}-{index:03d}.png"


def mean_distances(features_MID: np.ndarray) -> np.ndarray:
    """Of each group of G unit vectors, the mean of 1 - cosine over its G (G - 1) / 2 pairs."""
    count = features_MID.shape[1]
    similar_M = (np.square(features_MID.sum(axis=1)).sum(axis=-1) - count) / (count * (count - 1))
    return np.maximum(1 - similar_M, 0)  # equal images, but for rounding


def _of_all(index: Sequence[int], tables: Sequence[RewardTable]) -> RewardTable:
    """The table of all images in their order, from each process's tables of those that ``index`` names."""
    from marble_core.runtime.distributed import gather

    own = RewardTable.concatenate(tables) if tables else None
    parts = [(at, table) for at, table in gather((list(index), own)) if table is not None]
    return RewardTable.concatenate([table for _, table in parts]).of(np.argsort([i for at, _ in parts for i in at]))


def _with_columns(table: RewardTable, scorers: Sequence[Scorer]) -> RewardTable:
    """All scorers' columns in their order; those that the table lacks are NaN."""
    names = tuple(scorer.name for scorer in scorers)
    if names == table.names:
        return table
    empty_N, own = np.full(len(table.R_NK), np.nan), dict(zip(table.names, table.R_NK.T, strict=True))
    values = [f"{scorer.name}/{value}" for scorer in scorers for value in getattr(scorer, "side", ())]
    missing = {(i, names.index(table.names[k])): why for (i, k), why in table.missing.items()}
    R_NK = np.stack([own.get(name, empty_N) for name in names], axis=1)
    return RewardTable(names, R_NK, {v: table.side.get(v, empty_N).copy() for v in values}, missing, table.notes)


def _with_groups(table: RewardTable, found: RewardTable, rows: Sequence[int], count: int) -> RewardTable:
    """The table with the means of the groups of ``found``, each of ``count`` images, in these rows. A group that lacks the value of
    an image has none."""
    R_NK, side, missing = table.R_NK.copy(), dict(table.side), dict(table.missing)
    for j, name in enumerate(found.names):
        k = table.names.index(name)
        R_NK[rows, k] = found.R_NK[:, j].reshape(-1, count).mean(axis=1)
        missing |= {(rows[i // count], k): why for (i, own), why in found.missing.items() if own == j}
    for name, column_N in found.side.items():
        side[name] = side[name].copy()
        side[name][list(rows)] = column_N.reshape(-1, count).mean(axis=1)
    return replace(table, R_NK=R_NK, side=side, missing=missing, notes=table.notes + found.notes)


def _clip(scorers: Sequence[Scorer]) -> Any:
    """The image features of the first reward that has CLIP's: they are loaded already, and cost one more forward an image."""
    from marble_core.rewards.clip import Clip

    return next((found for scorer in scorers if isinstance(found := getattr(scorer, "clip", None), Clip)), None)


def _first_of_each_source(prompts: Sequence[Prompt], count: int) -> set[int]:
    sources = in_order(p.source for p in prompts)
    return {i for source in sources for i in [i for i, p in enumerate(prompts) if p.source == source][:count]}


def _evenly(prompts: Sequence[Prompt], count: int) -> list[int]:
    """``count`` prompts of different texts, in turn from each source, in its order."""
    firsts = {(p.source, p.text): i for i, p in reversed(list(enumerate(prompts)))}
    sources = {
        source: sorted(i for (own, _), i in firsts.items() if own == source) for source in in_order(s for s, _ in firsts)
    }
    in_turn = sorted((rank, i) for own in sources.values() for rank, i in enumerate(own))
    return sorted(i for _, i in in_turn[:count])
