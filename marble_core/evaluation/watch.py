"""What a look at held-out prompts finds while a run trains: gains, witnesses and alarms, each with its interval. No torch.

A look is held against the base on the same prompts from the same noise. Definitions: docs/watching.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import TypeAdapter, ValidationError

from marble_core.config.formats import LOOK
from marble_core.config.watch import WatchConfig
from marble_core.evaluation.results import Alarm, Estimate, RewardResult
from marble_core.evaluation.statistics import COLLAPSE, CONFIDENCE, Bootstrap, interval
from marble_core.evaluation.witnesses import DIVERSITY, LATENT_NORM, OF_IMAGES
from marble_core.types import MarbleError, Prompt

WITNESSES = (*OF_IMAGES, LATENT_NORM)
REWARD, TIES = "reward/", "ties/"  # before a reward's name, in the names of columns
HACKING: Final = "reward hacking"
DAMAGE: Final = "damage"
COLLAPSED: Final = "mode collapse"
HACKED = (HACKING, DAMAGE)  # the alarms that end a run; loss of diversity is counted apart
Columns = Mapping[str, np.ndarray]  # by name, a number for each of M prompts; NaN where a reward does not apply


@dataclass(frozen=True)
class Look:
    """The EMA after ``step`` steps, held against the base over the prompts that are watched.

    ``rewards``, ``witnesses`` and ``ties`` (the share of prompts whose images all have the same reward) are means over each
    prompt's images, paired. ``mean_gain`` is in base standard deviations, ``diversity`` relative: -0.2 is a fifth lost. Looks can
    be compared where ``of`` is equal: it names prompts, noise, sampler and rewards.
    """

    step: int
    of: str
    mean_gain: Estimate
    rewards: Mapping[str, RewardResult]
    witnesses: Mapping[str, RewardResult]
    ties: Mapping[str, RewardResult]
    diversity: Estimate | None = None
    alarms: tuple[Alarm, ...] = ()

    @property
    def hacked(self) -> bool:
        """Whether one of the alarms is ``HACKED``."""
        return any(alarm.kind in HACKED for alarm in self.alarms)

    def metrics(self) -> dict[str, float]:
        """As MLflow has them; changes in base standard deviations."""
        found = {"watch/mean_gain": self.mean_gain.mean}
        found |= {f"watch/gain/{name}": scaled(r).mean for name, r in self.rewards.items()}
        found |= {f"watch/{name}": scaled(r).mean for name, r in self.witnesses.items()}
        found |= {f"watch/ties/{name}": r.trained for name, r in self.ties.items()}
        found |= {} if self.diversity is None else {"watch/diversity": self.diversity.mean}
        return found | {"watch/alarm": float(self.hacked)}

    def __str__(self) -> str:
        """In a line, for the terminal."""
        moved = [f"{name} {interval(scaled(r), 2)}" for name, r in self.witnesses.items() if _shown(r.difference)]
        lost = [f"diversity {interval(_percent(self.diversity), 0)} %"] if self.diversity and _shown(self.diversity) else []
        said = "  ".join([f"watched: mean gain {interval(self.mean_gain, 2)}", *moved, *lost])
        return "  ".join([said, *(f"ALARM, {alarm.kind}: {alarm.text}" for alarm in self.alarms)])


def scaled(result: RewardResult) -> Estimate:
    """The difference in standard deviations of the base over prompts; 0 where it has none."""
    d, std = result.difference, result.base_std
    return Estimate(d.mean / std, d.low / std, d.high / std) if std else Estimate(0.0, 0.0, 0.0)


def compare_look(
    step: int,
    of: str,
    base: Columns,
    now: Columns,
    prompts: Sequence[Prompt],
    config: WatchConfig,
    resamples: int,
    seed: int,
) -> Look:
    """The look, with its alarms. Columns are named ``reward/NAME``, ``ties/NAME``, as in ``WITNESSES``, and ``diversity``.

    A prompt that one of the two has no value for is left out of both.
    """
    base, now = _where_both(base, now), _where_both(now, base)
    draws = Bootstrap(prompts, resamples, seed)

    def results(names: Mapping[str, str]) -> dict[str, RewardResult]:
        return {own: draws.result(base[name], now[name]) for own, name in names.items() if not np.isnan(base[name]).all()}

    rewards = results(_named(base, REWARD))
    if not rewards:
        raise MarbleError("no reward has a value at any prompt that is watched.")
    trusted = [name for name in rewards if name in config.trusted or not config.trusted]
    strict = Bootstrap(prompts, resamples, seed, 1 - (1 - CONFIDENCE) / max(1, len(trusted)))
    fell = {n: strict.result(base[REWARD + n], now[REWARD + n]).difference for n in trusted}
    diversity = draws.change(base[DIVERSITY], now[DIVERSITY]) if DIVERSITY in base else None
    pairs = [(now[REWARD + n] - base[REWARD + n], base[REWARD + n]) for n in rewards]
    witnesses = results({name: name for name in WITNESSES if name in base})
    return Look(
        step,
        of,
        draws.mean_gain(pairs),
        rewards,
        witnesses,
        results(_named(base, TIES)),
        diversity,
        tuple(_alarms(rewards, fell, {n: witnesses[n] for n in config.witnesses if n in witnesses}, diversity, config)),
    )


def _alarms(
    rewards: Mapping[str, RewardResult],
    fell: Mapping[str, Estimate],
    witnesses: Mapping[str, RewardResult],
    diversity: Estimate | None,
    config: WatchConfig,
) -> list[Alarm]:
    """Each by a whole interval. ``fell`` has the trusted rewards' differences, whose intervals hold for all of them at once."""
    signs = [f"{n} fell by {interval(d, rewards[n].digits)}" for n, d in fell.items() if d.high < 0]
    for name, result in witnesses.items():
        change = scaled(result)
        if change.low > config.range or change.high < -config.range:
            signs.append(
                f"{name} went to {result.trained:.3g} from the base's {result.base:.3g}, by {interval(change, 2)} of its std"
            )
    rose = [f"{n} {interval(r.difference, r.digits)}" for n, r in rewards.items() if r.difference.low > 0]
    found = []
    if signs:
        meanwhile = f"while {', '.join(rose)} rose" if rose else "and no reward is shown to have risen"
        found.append(Alarm(HACKING if rose else DAMAGE, f"{'; '.join(signs)}, {meanwhile}."))
    if diversity and diversity.high < COLLAPSE:
        lost = interval(_percent(diversity), 0)
        found.append(
            Alarm(COLLAPSED, f"the images of one prompt became more alike: their diversity changed by {lost} percent.")
        )
    return found


@dataclass
class Record:
    """The looks of a run, oldest first, and what they were held against: the base's columns for ``of``. A file of JSON lines."""

    looks: list[Look] = field(default_factory=list)
    of: str = ""
    base: dict[str, np.ndarray] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """The base first, as step 0."""
        base = {name: [None if np.isnan(v) else float(v) for v in column] for name, column in self.base.items()}
        lines = [LOOK.stamp_json(_BASE.dump_json(_Base(0, self.of, base)))]
        lines += [LOOK.stamp_json(_LOOK.dump_json(look)) for look in self.looks]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Record:
        """Empty where there is no file. Raises MarbleError for one that holds something else."""
        record = cls()
        for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
            try:
                data = LOOK.upgrade_json(line, path)
                if number == 1:
                    first = _BASE.validate_json(data)
                    record.of = first.of
                    record.base = {n: np.array([np.nan if v is None else v for v in own]) for n, own in first.base.items()}
                else:
                    record.looks.append(_LOOK.validate_json(data))
            except ValidationError as error:
                raise MarbleError(f"{path}, line {number}, is no look ({error.errors()[0]['msg']}): remove the file.") from None
        return record

    @property
    def first_alarm(self) -> Look | None:
        """The first look with an alarm of hacking or damage."""
        return next((look for look in self.looks if look.hacked), None)

    def best(self) -> Look | None:
        """The look of largest mean gain without such an alarm, among those that can be compared with the last; of equals the first."""
        own = [look for look in self.looks if look.of == self.of and not look.hacked]
        return max(own, key=lambda look: look.mean_gain.mean, default=None)

    def before_alarm(self) -> int:
        """The step of the last look before the first alarm; 0 where there was none."""
        alarm = self.first_alarm
        return max((look.step for look in self.looks if alarm and look.step < alarm.step), default=0)


@dataclass(frozen=True)
class _Base:
    step: int
    of: str
    base: Mapping[str, list[float | None]]


_LOOK, _BASE = TypeAdapter(Look), TypeAdapter(_Base)


def _where_both(columns: Columns, others: Columns) -> dict[str, np.ndarray]:
    return {name: np.where(np.isnan(others[name]), np.nan, column) for name, column in columns.items()}


def _named(columns: Columns, prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): name for name in columns if name.startswith(prefix)}


def _shown(change: Estimate) -> bool:
    return change.low > 0 or change.high < 0


def _percent(change: Estimate) -> Estimate:
    return Estimate(100 * change.mean, 100 * change.low, 100 * change.high)
