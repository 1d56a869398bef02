"""Looks at held-out prompts while a run trains: samples them, scores them, keeps the record, and says where the run ends.

Training does not notice: noise and solver are the evaluation's, no random generator is left changed, and the weights that were
borrowed are put back to the bit. docs/watching.md has the definitions.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from marble_core.algorithm.learner import Learner
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import WATCH
from marble_core.evaluation import witnesses
from marble_core.evaluation.evaluator import mean_distances
from marble_core.evaluation.watch import REWARD, TIES, Columns, Look, Record, compare_look
from marble_core.evaluation.witnesses import DIVERSITY, LATENT_NORM
from marble_core.models.policy import Policy
from marble_core.models.sampling import sample
from marble_core.rewards.clip import Clip
from marble_core.rewards.scoring import on_device, score_all
from marble_core.runtime import distributed
from marble_core.runtime.seeding import derive
from marble_core.types import MarbleError, Prompt, Scorer


class Watch:
    """The looks of one run at ``prompts``, kept in ``file`` too, which may be None. Without prompts it never looks.

    Every process of a training has one, and calls its methods at the same steps; they come to the same looks. ``show`` gets each
    look, or the sentence why there is none.
    """

    def __init__(
        self,
        config: RunConfig,
        prompts: Sequence[Prompt] = (),
        file: Path | None = None,
        show: Callable[[int, Look | str], None] = lambda step, said: None,
    ) -> None:
        self.config, self.prompts, self.file, self.show = config, tuple(prompts), file, show
        self.record = Record()
        self.seeds = [derive(config.evaluation.seed, "watch", i) for i in range(len(prompts) * config.watch.images)]
        self.of = self._of()
        self._tried = 0  # the last step of this process at which a look was taken or failed

    def due(self, step: int) -> bool:
        watch, train = self.config.watch, self.config.train
        wanted = bool(watch.every) and (step % watch.every == 0 or (train.keep_best and step == train.steps))
        known = any(look.step == step and look.of == self.of for look in self.record.looks)
        return bool(self.prompts) and wanted and step > self._tried and not known

    def look(self, learner: Learner) -> None:
        """One look at the EMA, and before the first at the base. Where it cannot be had, training goes on without it."""
        step = self._tried = learner.step
        try:
            if self.record.of != self.of:
                base = self._columns(learner.policy, learner.scorers, base=True)
                self.record.base, self.record.of = dict(base), self.of
            now = self._columns(learner.policy, learner.scorers, base=False)
            e = self.config.evaluation
            found = compare_look(step, self.of, self.record.base, now, self.prompts, self.config.watch, e.resamples, e.seed)
        except MarbleError as error:
            self.show(step, f"No look after step {step}: {error}")
            return
        self.record.looks = [look for look in self.record.looks if look.step != step] + [found]
        self._write()
        self.show(step, found)

    @property
    def stopped(self) -> bool:
        """Whether an alarm ends the training."""
        return self.config.watch.on_alarm == "stop" and self.record.first_alarm is not None

    def end(self, step: int) -> int:
        """The step whose checkpoint is the result of a training that has come to ``step``."""
        best = self.record.best() if self.config.train.keep_best else None
        if best is not None:
            return best.step
        return self.record.before_alarm() if self.stopped else step

    @property
    def needed(self) -> set[int]:
        """Steps whose checkpoints ``end`` may ask for."""
        looks = [look for look in self.record.looks if not look.hacked]
        stops = (
            {max((look.step for look in looks), default=0)} if self.config.watch.on_alarm == "stop" and self.prompts else set()
        )
        best = self.record.best() if self.config.train.keep_best else None
        return stops | ({best.step} if best else set())

    def save(self, directory: Path) -> None:
        """The record into a checkpoint, or beside an adapter."""
        if self.record.base:
            self.record.save(directory / WATCH)

    def load(self, directory: Path) -> None:
        """The record of a checkpoint, so that it tells of the same steps as the learner."""
        self.record = Record.load(directory / WATCH)
        self._write()

    def _write(self) -> None:
        if self.file is not None and self.record.base:
            self.record.save(self.file)

    def _of(self) -> str:
        """A digest of all that two looks must share to be compared."""
        c = self.config
        stated = {
            "model": c.model.model_dump(mode="json", include={"path", "revision", "family", "precision", "height", "width"}),
            "rewards": [reward.model_dump(mode="json", exclude={"timeout"}) for reward in c.rewards],
            "sampler": [c.evaluation.solver, c.evaluation.steps, c.evaluation.seed],
            "prompts": [[p.source, p.text] for p in self.prompts],
            "images": c.watch.images,
        }
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:12]

    def _columns(self, policy: Policy, scorers: Sequence[Scorer], base: bool) -> Columns:
        """Of all prompts, each process having sampled its share. Raises MarbleError on all where it cannot be done on one."""
        mine = range(distributed.rank(), len(self.prompts), distributed.world())
        found: Any = None
        try:
            if mine:
                with untouched_generators():
                    found = self._of_prompts(policy, scorers, mine, base)
        except MarbleError as error:
            found = str(error)
        gathered = distributed.gather((list(mine), found))
        if failed := [own for _, own in gathered if isinstance(own, str)]:
            raise MarbleError(failed[0])
        names = next(own for _, own in gathered if own is not None)
        columns = {name: np.full(len(self.prompts), np.nan) for name in names}
        for indices, own in gathered:
            for name in own or ():
                columns[name][indices] = own[name]
        return columns

    def _of_prompts(self, policy: Policy, scorers: Sequence[Scorer], mine: range, base: bool) -> dict[str, np.ndarray]:
        e, count = self.config.evaluation, self.config.watch.images
        prompts = [self.prompts[m] for m in mine]
        seeds = [self.seeds[m * count + i] for m in mine for i in range(count)]
        batch = min(e.batch_size, self.config.rollout.batch_size)
        with policy.using("off") if base else policy.averaged() as model:
            x0_NCHW, images_NHWC, *_ = sample(
                model, [p.text for p in prompts], seeds, e.solver, e.steps, batch, precision=self.config.model.precision
            )
        shared = [scorer for scorer in scorers if scorer.name not in self.config.balance.guards]  # a guard is no gain
        every = np.arange(len(images_NHWC)) // count
        table = score_all(shared, images_NHWC, [prompts[m] for m in every], go_on=True, group_N=every)
        if np.isinf(table.R_NK).any():
            raise MarbleError(f"the reward {table.names[np.argwhere(np.isinf(table.R_NK))[0, 1]]!r} is not finite.")
        of_images = {**witnesses.of_images(images_NHWC), LATENT_NORM: witnesses.latent_norm(x0_NCHW.flatten(1).cpu().numpy())}
        found = {name: values_N.reshape(-1, count).mean(axis=1) for name, values_N in of_images.items()}
        for name, R_N in zip(table.names, table.R_NK.T, strict=True):
            R_MI = R_N.reshape(-1, count)
            found |= {REWARD + name: _mean_of_those_there(R_MI), TIES + name: witnesses.ties(R_MI)}
        if scorer := next((s for s in scorers if isinstance(getattr(s, "clip", None), Clip)), None):
            with on_device(scorer):
                features_ND = scorer.clip.image_features(images_NHWC).double().numpy()  # type: ignore[attr-defined]
            found[DIVERSITY] = mean_distances(features_ND.reshape(len(prompts), count, -1))
        return found


def _mean_of_those_there(R_MI: np.ndarray) -> np.ndarray:
    """Of each row, without NaN; NaN where there is nothing else: the reward does not apply, or its scorer gave no value."""
    counts_M = (~np.isnan(R_MI)).sum(axis=1)
    return np.where(counts_M > 0, np.nansum(R_MI, axis=1) / np.maximum(counts_M, 1), np.nan)


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Every global random generator is as it was after the block: a scorer may draw from one."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
