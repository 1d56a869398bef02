"""Retraining from the champion: what a run begins from, and which prompts it trains on. No torch.

``train.start_from: champion`` names no fixed weights. prepare puts the checkpoint of the registered model's champion in its
place, and of the prompts those that ``data.new_prompts`` wants, so that everything after it is a run like any other. Every run
leaves its prompts beside its checkpoints on S3, where its successor finds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from marble_core.checkpoints.run_checkpoints import RunCheckpoints
from marble_core.checkpoints.start_from import config_of_latest, locate
from marble_core.config.schema import CHAMPION, RunConfig
from marble_core.prompts import mix, read_prompts, write_jsonl
from marble_core.runtime.scratch import scratch_directory
from marble_core.runtime.seeding import derive
from marble_core.storage.s3 import S3
from marble_core.types import MarbleError, Prompt, in_order

PROMPTS, KNOWN = "train.jsonl", "known.jsonl"  # below runs/RUN_ID: what it trains on; what it and its predecessors were given
CHECKPOINT_TAG = "marble.checkpoint"  # on a version: where its training can go on


@dataclass(frozen=True)
class Champion:
    """The version that a run begins from, the address of its checkpoint, what it was trained on, and what is not new to it."""

    version: str
    checkpoint: str
    prompts: tuple[Prompt, ...]
    known: tuple[Prompt, ...]


def find_champion(name: str) -> Champion | None:
    """The champion of the registered model ``name``; None where there is none yet.

    Raises MarbleError where there was one and is none any more, where the champion says no checkpoint, or its checkpoint or prompts are gone.
    """
    from marble_core.tracking.registry import champion_tags

    found = champion_tags(name)
    if found is None:
        return None
    version, tags = found
    if CHECKPOINT_TAG not in tags:
        raise MarbleError(
            f"The champion of {name!r}, version {version}, has no tag {CHECKPOINT_TAG}: give train.start_from an s3:// address."
        )
    remote, checkpoint = locate(tags[CHECKPOINT_TAG])
    prompts = stored(remote.s3, remote.run_id, PROMPTS)
    if not prompts:
        raise MarbleError(
            f"The prompts of the champion of {name!r} are not at {remote.s3.uri(_key(remote.run_id, PROMPTS))} any more: "
            "give train.start_from an s3:// address, which trains on all prompts."
        )
    return Champion(version, remote.uri(checkpoint), prompts, stored(remote.s3, remote.run_id, KNOWN) or prompts)


@dataclass(frozen=True)
class TrainingSource:
    """Where the prompts of a run come from: the configuration alone, the champion too, or the run's own earlier start."""

    config: RunConfig
    champion: Champion | None = None
    own: tuple[Prompt, ...] = ()
    note: str = ""

    def prompts(self, given: Sequence[Prompt], held_out: Sequence[Prompt]) -> tuple[list[Prompt], list[str]]:
        """The prompts to train on, of those that the configuration gives, and what is to be told of it, a sentence each.

        No prompts where ``data.new_prompts`` is only and there are none. Raises MarbleError where their sources cannot be mixed.
        """
        if self.own:
            return list(self.own), ["The run goes on with the prompts that it was begun with."]
        if self.champion is None:
            return list(given), [self.note] if self.note else []
        before, known = self.champion.prompts, self.champion.known
        choice = choose(self.config.data.new_prompts, given, before, known, held_out, self.config.seed)
        said = f"Goes on from the champion, version {self.champion.version}; {choice.counts}."
        if choice.prompts:
            mix(choice.prompts, self.config.rollout.prompts, 1, 0, self.config.seed, self.config.data.shares)
        else:
            said = f"Nothing to train on: no prompt is new since the champion, version {self.champion.version}."
        return choice.prompts, [said]

    def known(self, given: Sequence[Prompt]) -> list[Prompt]:
        """What is not new to who begins from this run."""
        return [*given, *(self.champion.known if self.champion else ())]


def plan_retraining(config: RunConfig, s3: S3, run_id: str) -> tuple[RunConfig, TrainingSource]:
    """The configuration with the champion's checkpoint in the place of ``champion``, and where the prompts come from.

    A run that has a checkpoint of its own keeps what it was begun with, whoever is champion now. Without a champion the run
    is a plain one: the first of a schedule.
    """
    if config.train.start_from != CHAMPION:
        return config, TrainingSource(config)
    if before := config_of_latest(RunCheckpoints(s3, run_id)):
        settled = _starting_from(config, before.train.start_from)
        return settled, TrainingSource(settled, own=stored(s3, run_id, PROMPTS))
    champion = find_champion(config.registry.model)
    settled = _starting_from(config, champion.checkpoint if champion else None)
    name = config.registry.model
    note = "" if champion else f"The registered model {name} has never had a champion: training begins from the base."
    return settled, TrainingSource(settled, champion, note=note)


def _starting_from(config: RunConfig, address: str | None) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"start_from": address})})


@dataclass(frozen=True)
class PromptSelection:
    """The prompts of a retraining; by source, how many of them are new and how many the champion knows."""

    prompts: list[Prompt]
    new: dict[str, int]
    known: dict[str, int]

    @property
    def counts(self) -> str:
        return ", ".join(f"{source} {self.new[source]} new and {self.known[source]} known" for source in self.new)


def choose(
    mode: str,
    given: Sequence[Prompt],
    before: Sequence[Prompt],
    known: Sequence[Prompt],
    held_out: Sequence[Prompt],
    seed: int,
) -> PromptSelection:
    """The prompts of ``given``, and of ``before``, the champion's, that a retraining trains on; new is what is not ``known``.

    ``all`` takes what is given, ``only`` the new ones. ``mix`` takes these too, and fills every source up to the size that it
    had before from the champion's prompts, drawn by ``seed``: no specialist starves because the news are of another kind. A
    prompt that is held out now is not taken from the champion's.
    """
    not_new = {(p.source, p.text) for p in known}
    judged_by = {p.text for p in held_out}
    chosen: list[Prompt] = []
    news, olds = {}, {}
    for source in in_order(p.source for p in (*given, *before)):
        own = [p for p in given if p.source == source]
        new = [p for p in own if (source, p.text) not in not_new]
        old = [p for p in own if (source, p.text) in not_new] if mode == "all" else []
        if mode == "mix":
            then = [p for p in before if p.source == source]
            usable = [p for p in then if p.text not in judged_by]
            order = np.random.default_rng(derive(seed, "retraining", source)).permutation(len(usable))
            old = [usable[i] for i in sorted(order[: max(0, len(then) - len(new))])]
        if new or old:
            news[source], olds[source] = len(new), len(old)
        chosen += [*new, *old]
    return PromptSelection(chosen, news, olds)


def successor_tags(config: RunConfig, run_id: str) -> dict[str, str]:
    """What a version says to a run that begins from it."""
    remote = RunCheckpoints(S3(config.storage.bucket), run_id)
    name = remote.latest()
    return {CHECKPOINT_TAG: remote.uri(name)} if name else {}


def store_prompts(s3: S3, run_id: str, prompts: Sequence[Prompt], known: Sequence[Prompt]) -> None:
    """Leave the run's prompts for its successor, and all that are not new to it."""
    with scratch_directory() as directory:
        for name, own in ((PROMPTS, prompts), (KNOWN, {(p.source, p.text): p for p in known}.values())):
            write_jsonl(directory / name, own)
            s3.upload_file(directory / name, _key(run_id, name))


def stored(s3: S3, run_id: str, name: str) -> tuple[Prompt, ...]:
    """A run's PROMPTS or KNOWN; nothing where there are none."""
    if not s3.exists(_key(run_id, name)):
        return ()
    with scratch_directory() as directory:
        s3.download_file(_key(run_id, name), directory / name)
        return tuple(read_prompts(directory / name))


def _key(run_id: str, name: str) -> str:
    return f"runs/{run_id}/{name}"
