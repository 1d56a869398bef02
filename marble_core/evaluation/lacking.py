"""Images without a value in an evaluation: left out in pairs, counted by reward and model, and an alarm above a share. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from marble_core.config.schema import RewardConfig
from marble_core.evaluation.results import Alarm, Lacking
from marble_core.types import RewardTable


def finite(table: RewardTable) -> RewardTable:
    """The table, in which a value that is not finite is none: it says nothing of an image, and ends no evaluation."""
    infinite_NK = np.isinf(table.R_NK)
    if not infinite_NK.any():
        return table
    missing = {(int(i), int(k)): "it is not finite" for i, k in np.argwhere(infinite_NK)}
    return replace(table, R_NK=np.where(infinite_NK, np.nan, table.R_NK), missing={**table.missing, **missing})


def paired(tables: Sequence[RewardTable]) -> list[RewardTable]:
    """Each table without the values whose prompt lacks one in any of them. Side values go with their reward."""
    if not any(table.missing for table in tables):
        return list(tables)
    lacks_NK = np.any([table.missing_NK for table in tables], axis=0)
    return [replace(table, R_NK=np.where(lacks_NK, np.nan, table.R_NK), side=_side(table, lacks_NK)) for table in tables]


def _side(table: RewardTable, lacks_NK: np.ndarray) -> dict[str, np.ndarray]:
    own = {name: lacks_NK[:, table.names.index(name.partition("/")[0])] for name in table.side}
    return {name: np.where(own[name], np.nan, column) for name, column in table.side.items()}


def lacking(tables: Mapping[str, RewardTable]) -> dict[str, Lacking]:
    """By reward, of those that lack a value of any model. Each model's table is the whole one, not the paired."""
    found = {}
    for k, name in enumerate(next(iter(tables.values())).names):
        why = {role: [said for (_, j), said in table.missing.items() if j == k] for role, table in tables.items()}
        if any(why.values()):
            table = next(iter(tables.values()))
            applies = int((table.mask_NK | table.missing_NK)[:, k].sum())
            pairs = int(np.any([table.missing_NK[:, k] for table in tables.values()], axis=0).sum())
            commonest = Counter(said for own in why.values() for said in own).most_common(1)[0][0]
            found[name] = Lacking(applies, pairs, {role: len(own) for role, own in why.items()}, commonest)
    return found


def notes(found: Mapping[str, Lacking]) -> Iterator[str]:
    for name, lost in found.items():
        counts = ", ".join(f"{role} {count}" for role, count in lost.by_role.items())
        yield (
            f"{name} has no value for some images ({counts}; most often because {lost.why}), so it is compared without {lost.pairs} "
            f"of its {lost.applies} prompts."
        )


def alarms(found: Mapping[str, Lacking], rewards: Sequence[RewardConfig]) -> Iterator[Alarm]:
    """Of the rewards that are compared without more of their prompts than ``max_missing``, and than one."""
    limits = {reward.name: reward.max_missing for reward in rewards}
    for name, lost in found.items():
        if lost.pairs > max(1, limits[name] * lost.applies):
            text = (
                f"{name} could be compared on only {lost.applies - lost.pairs} of its {lost.applies} prompts. Its scorer gave the "
                f"others no value, most often because {lost.why}. Mend it and evaluate again."
            )
            yield Alarm("missing values", text)
