"""Paired statistics of an evaluation: means, win rates, bootstrap intervals, and the alarms that follow from them. Pure numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import NormalDist

import numpy as np

from marble_core.evaluation import lacking
from marble_core.evaluation.results import (
    Alarm,
    Champion,
    Diversity,
    Estimate,
    Evaluation,
    RewardResult,
    Together,
    Versus,
)
from marble_core.runtime.seeding import derive
from marble_core.types import MarbleError, Prompt, RewardTable, in_order

CONFIDENCE = 0.95
FEW_PROMPTS = 20  # below this no bootstrap interval is to be relied on
COLLAPSE = -0.2  # a change of diversity below which, with its whole interval, there is an alarm


def compare(
    base: RewardTable,
    trained: RewardTable,
    prompts: Sequence[Prompt],
    resamples: int,
    seed: int,
    champion: RewardTable | None = None,
    held_out: Collection[str] = (),
) -> Evaluation:
    """Compare tables whose row i is the same prompt and the same noise. ``held_out`` names the rewards not trained on.

    Intervals are percentiles over ``resamples`` paired bootstrap resamples. A resample draws prompts (distinct texts) with
    replacement within each source and serves all rewards at once, so the mean gain's interval knows how the rewards move together.
    A prompt for which a model lacks a reward's value is left out of that reward. Raises ValueError if the tables do not fit together,
    and MarbleError if no reward has a value for any prompt.
    """
    _require_same_shape(base, [trained] if champion is None else [trained, champion], prompts)
    roles = {"base": base, "trained": trained} | ({} if champion is None else {"champion": champion})
    lost = lacking.lacking(roles)
    base, trained, *rest = lacking.paired(list(roles.values()))
    champion = rest[0] if rest else None
    draws = Bootstrap(prompts, resamples, seed)
    b, t = _columns(base), _columns(trained)
    found = {name: draws.result(b[name], t[name]) for name in b}
    rewards = {name: found[name] for name in base.names if name in found and name not in held_out}
    if not rewards:
        if lost:
            raise MarbleError(f"No reward has a value for any held-out prompt: {' '.join(lacking.notes(lost))}")
        raise MarbleError("No reward applies to any held-out prompt; add held-out prompts that the rewards apply to.")
    parts = {
        source: own for source in in_order(p.source for p in prompts) if (own := _of_source(b, base.names, prompts, source))
    }
    missing = tuple(name for name in base.names if name not in found)
    over = None
    if champion is not None:
        c = _columns(champion)
        over = Champion(
            {name: draws.versus(c[name], t[name]) for name in found},
            {source: {name: draws.versus(c[name], t[name], b_N) for name, b_N in own.items()} for source, own in parts.items()},
            draws.mean_gain([(t[name] - c[name], b[name]) for name in rewards]),
        )
    return Evaluation(
        rewards,
        {source: {name: draws.result(b_N, t[name]) for name, b_N in own.items()} for source, own in parts.items()},
        draws.mean_gain([(t[name] - b[name], b[name]) for name in rewards]),
        missing,
        (*_notes(base, trained, rewards, [name for name in missing if name not in lost]), *lacking.notes(lost)),
        side={name: found[name] for name in base.side if name in found},
        held_out={name: found[name] for name in base.names if name in found and name in held_out},
        champion=over,
        lacking=lost,
        together=draws.together([t[name] - b[name] for name in rewards]),
    )


def diversity(
    distances: Mapping[str, np.ndarray], prompts: Sequence[Prompt], images: int, resamples: int, seed: int
) -> Diversity:
    """From each role's mean pairwise distances (M,) of M prompts' images, ``images`` of each."""
    b_M, t_M, c_M = distances["base"], distances["trained"], distances.get("champion")
    change = Bootstrap(prompts, resamples, seed).change(b_M, t_M)
    parts = {s: [i for i, p in enumerate(prompts) if p.source == s] for s in dict.fromkeys(p.source for p in prompts)}
    by_source = {}
    if len(parts) > 1:
        for source, own in parts.items():
            its = {role: d_M[own] for role, d_M in distances.items()}
            by_source[source] = diversity(its, [prompts[i] for i in own], images, resamples, seed)
    champion = None if c_M is None else float(c_M.mean())
    return Diversity(len(prompts), images, float(b_M.mean()), float(t_M.mean()), change, champion, by_source)


def alarms(evaluation: Evaluation) -> tuple[Alarm, ...]:
    """Reward hacking: a held-out reward fell while a trained one rose. Mode collapse: diversity fell by more than a fifth.

    Each by whole intervals against the base, so that noise raises none.
    """
    found = []
    rose = [f"{n} {interval(r.difference, r.digits)}" for n, r in evaluation.rewards.items() if r.difference.low > 0]
    for name, r in evaluation.held_out.items():
        if rose and r.difference.high < 0:
            fell = f"{name}, which was not trained on, fell by {interval(r.difference, r.digits)}"
            found.append(Alarm("reward hacking", f"{fell}, while what was trained on rose: {', '.join(rose)}."))
    if (d := evaluation.diversity) and d.change.high < COLLAPSE:
        lost = Estimate(*(100 * value for value in (d.change.mean, d.change.low, d.change.high)))
        text = f"The images of one prompt became more alike: their diversity changed by {interval(lost, 0)} percent."
        found.append(Alarm("mode collapse", text))
    return tuple(found)


def interval(estimate: Estimate, digits: int = 3) -> str:
    """+0.123 (+0.045 to +0.201)"""
    mean, low, high = (f"{value:+.{digits}f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} ({low} to {high})"


class Bootstrap:
    """The resamples of N prompts, the same for every reward. Columns (N,) are NaN where a reward does not apply."""

    def __init__(self, prompts: Sequence[Prompt], resamples: int, seed: int, confidence: float = CONFIDENCE) -> None:
        """counts_UN: how often resample r drew prompt i; every source keeps its number of distinct texts.

        A text that was asked for several times is drawn with all its images, for they say little more than one does.
        """
        rng = np.random.default_rng(derive(seed, "bootstrap"))
        texts = {text: c for c, text in enumerate(dict.fromkeys((p.source, p.text) for p in prompts))}
        sources = np.array([source for source, _ in texts])
        counts_UE = np.zeros((resamples, len(texts)))
        for source in np.unique(sources):
            own = np.flatnonzero(sources == source)
            counts_UE[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=resamples)
        self.prompts, self.confidence = prompts, confidence
        self.counts_UN = counts_UE[:, [texts[p.source, p.text] for p in prompts]]

    def result(self, b_N: np.ndarray, t_N: np.ndarray) -> RewardResult:
        """Of the prompts on which ``b_N`` is finite."""
        use_N = ~np.isnan(b_N)
        v = self.versus(b_N, t_N)
        return RewardResult(int(use_N.sum()), v.mean, float(t_N[use_N].mean()), v.difference, _std(b_N[use_N]), v.win_rate)

    def versus(self, other_N: np.ndarray, t_N: np.ndarray, among_N: np.ndarray | None = None) -> Versus:
        """Trained against another model, of the prompts on which ``among_N`` (or the other) is finite."""
        use_N = ~np.isnan(other_N if among_N is None else among_N)
        d = (t_N - other_N)[use_N]
        (d_U,) = self._means(d[None], use_N)
        wins = float(np.mean((d > 0) + 0.5 * (d == 0)))
        return Versus(float(other_N[use_N].mean()), self._estimate(float(d.mean()), d_U, use_N), wins)

    def mean_gain(self, differences: Iterable[tuple[np.ndarray, np.ndarray]]) -> Estimate:
        """Mean over rewards of mean(d_N) / std(b_N), for pairs (d_N, b_N); a base without spread has no unit and is left out."""
        found = [
            (float(np.nanmean(d_N)) / std, self.gains(d_N, b_N)) for d_N, b_N in differences if (std := _std(_finite(b_N)))
        ]
        if not found:
            return Estimate(0.0, 0.0, 0.0)
        means, draws_KU = zip(*found, strict=True)
        return self._estimate(float(np.mean(means)), np.nanmean(draws_KU, axis=0), np.ones(len(self.prompts), bool))

    def together(self, differences: Sequence[np.ndarray]) -> Together:
        """Of columns d_N, one a reward, NaN where it does not apply. A prompt to which none applies does not count."""
        d_NK = np.stack(list(differences), axis=1)
        use_N = ~np.isnan(d_NK).all(axis=1)
        d_NK = d_NK[use_N]
        every = ((d_NK > 0) | np.isnan(d_NK)).all(axis=1)
        none = ~(d_NK < 0).any(axis=1) & (d_NK > 0).any(axis=1)
        shares_VN = np.stack([every, none]).astype(float)
        found = [
            self._estimate(float(x.mean()), x_U, use_N) for x, x_U in zip(shares_VN, self._means(shares_VN, use_N), strict=True)
        ]
        return Together(*found)

    def change(self, b_N: np.ndarray, t_N: np.ndarray) -> Estimate:
        """mean(t_N) / mean(b_N) - 1 of positive columns that apply to every prompt; 0 where the base's mean is 0."""
        everywhere = np.ones(len(b_N), bool)
        if not b_N.mean():
            return Estimate(0.0, 0.0, 0.0)
        b_U, t_U = self._means(np.stack([b_N, t_N]), everywhere)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._estimate(float(t_N.mean() / b_N.mean() - 1), t_U / b_U - 1, everywhere)

    def gains(self, d_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
        """mean(d) / std(b) of every resample (U,), over the prompts on which ``b_N`` is finite; NaN where it drew none of them."""
        use_N = ~np.isnan(b_N)
        b = b_N[use_N]
        centred = b - b.mean()
        d_U, b_U, b2_U = self._means(np.stack([d_N[use_N], centred, centred**2]), use_N)
        # A resample of a rarely met reward can be nearly constant; its unit is kept from collapsing.
        return d_U / np.sqrt(np.maximum(b2_U - b_U**2, (b.std() / 2) ** 2))

    def _means(self, values_VN: np.ndarray, use_N: np.ndarray) -> np.ndarray:
        """Means (V, U) of columns over the prompts in use, for every resample; NaN where it drew none."""
        counts_UN = self.counts_UN[:, use_N]
        with np.errstate(invalid="ignore"):
            return values_VN @ counts_UN.T / counts_UN.sum(axis=1)

    def _estimate(self, mean: float, draws_U: np.ndarray, use_N: np.ndarray) -> Estimate:
        """Percentiles of the resamples, with tails expanded for the source that has fewest distinct texts, n.

        Plain percentiles are too short by about sqrt((n - 1) / n) and know the normal for Student's t, here approximated by
        z + (z^3 + z) / 4(n - 1) (Hesterberg, arXiv 1411.5279: the expanded percentile interval). Of 1,000 simulated comparisons
        it covers 93 to 97 % with normal differences, and with wins and losses among ties, from n = 20 on, with an exponential
        tail from 40; with a log-normal tail only 89 % at 20 and 91 % at 96. (Bootstrap-t is better on tails, worse among ties.)
        """
        texts = {(p.source, p.text) for p, used in zip(self.prompts, use_N, strict=True) if used}
        n = min(Counter(source for source, _ in texts).values())
        normal, free = NormalDist(), max(n - 1, 1)
        z = normal.inv_cdf((1 + self.confidence) / 2)
        tail = normal.cdf(-((n / free) ** 0.5) * (z + (z**3 + z) / (4 * free)))
        low, high = np.nanquantile(draws_U, [tail, 1 - tail])
        return Estimate(mean, float(low), float(high))


def _require_same_shape(base: RewardTable, others: Sequence[RewardTable], prompts: Sequence[Prompt]) -> None:
    for other in others:
        if base.names != other.names or base.R_NK.shape != other.R_NK.shape or len(base.R_NK) != len(prompts):
            raise ValueError("base, the other models and prompts do not describe the same rewards and prompts")
        applies = [table.mask_NK | table.missing_NK for table in (base, other)]
        if (applies[0] != applies[1]).any() or np.isinf(base.R_NK).any() or np.isinf(other.R_NK).any():
            raise ValueError("base and the other models must be finite on the same prompts")


def _columns(table: RewardTable) -> dict[str, np.ndarray]:
    """Rewards and side values by name, but for those that apply to no prompt."""
    columns = dict(zip(table.names, table.R_NK.T, strict=True)) | dict(table.side)
    return {name: column for name, column in columns.items() if not np.isnan(column).all()}


def _of_source(
    columns: Mapping[str, np.ndarray], names: Sequence[str], prompts: Sequence[Prompt], source: str
) -> dict[str, np.ndarray]:
    """The rewards' columns with NaN outside the source, but for those that apply to none of its prompts."""
    own_N = np.array([p.source == source for p in prompts])
    parts = {name: np.where(own_N, columns[name], np.nan) for name in names if name in columns}
    return {name: column for name, column in parts.items() if not np.isnan(column).all()}


def _finite(x_N: np.ndarray) -> np.ndarray:
    return x_N[~np.isnan(x_N)]


def _std(x: np.ndarray) -> float:
    """The population's; exactly 0 of equal numbers, which may differ from their mean in the last bit."""
    return 0.0 if x.max() == x.min() else float(x.std())


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
