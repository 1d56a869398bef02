"""Writes evidence.md from the studies' finished cells and banks beside it: python docs/evidence.py [--check]

A number in evidence.md has no other source. Cells lie in studies/NAME/ARM/seed-N.json, as `marble study` left them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from marble_core.bench.study import Study
from marble_core.config.strict_yaml import read_yaml
from marble_core.evaluation.cell import Cell, as_array
from marble_core.evaluation.over_seeds import MEAN, gains, over_guidance, paired
from marble_core.evaluation.results import Estimate
from marble_core.evaluation.watch import HACKED

DOCS = Path(__file__).parent
STUDIES, PAGE = DOCS / "studies", DOCS / "evidence.md"
LEGITIMATE = ("clipscore", "pickscore", "aesthetic", "ocr", "geneval")
HACKABLE = "compressibility"
RULES = (  # of the bank, those that are shown
    "min-norm (marble)", "equal, normalised", "equal, raw", "consensus, p = 1", "consensus, p = 1.5",
    "marble, gram: cross", "mgda", "weighted_sum", "gdpo", "UPGrad (TorchJD)", "CAGrad, c = 0.5 (TorchJD)", "PCGrad (TorchJD)",
)  # fmt: skip

OPENING = """# Evidence

`python docs/evidence.py` writes this page from the files in [studies/](studies/). Nobody types a number here. The bullets say what must
hold for a claim to count as shown; we committed them before the study's first cell. "Not measured yet" means exactly that.

All of it is the laptop demo: a tiny SD3 of the real architecture, five real scorers, 64 x 64 pixels. Nobody has repeated any of it on
SD3.5. Gains are in standard deviations of the base's scores. Intervals are 95 % and resample seeds and prompts together.
"""

CLAIMS = read_yaml(STUDIES / "claims.yaml", "The claims")


def page() -> str:
    studied = [
        *_study("A", "hackable", _verdicts_of_a),
        *_study("B", "five", _verdicts_of_b),
        *_study("C", "diversity"),
        *_study("E", "published"),
    ]
    return "\n".join([OPENING, *_bank(), *_rates(), *studied, *_open("DFG")])


def cells(name: str) -> list[Cell]:
    study = Study.read(STUDIES / f"{name}.yaml")
    paths = (STUDIES / name / arm / f"seed-{seed}.json" for arm, seed in study.cells)
    return [Cell.load(path) for path in paths if path.is_file()]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)] + [""]


def _with(e: Estimate) -> str:
    return f"{e.mean:+.2f} ({e.low:+.2f} to {e.high:+.2f})"


def _number(value: float | None, form: str = "+.2f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _bank() -> Iterator[str]:
    yield "## The bank: how well one step's update agrees with the true gradients\n"
    for path in sorted(STUDIES.glob("signal-*.json")):
        bank = json.loads(path.read_text(encoding="utf-8"))
        names = bank["names"]
        yield (
            f"`{path.name}`: {bank['batches']} independent batches at a fixed policy. Products across batches estimate the truth. Each "
            "number is the cosine between a rule's update and a reward's true gradient. The last columns are the mean's gain over "
            "min-norm (paired over batches, standard error in brackets) and the last reward's share of the update "
            "([signal.md](signal.md)).\n"
        )
        for balanced in bank["balance"]:
            yield f"Balanced: {', '.join(balanced['balanced'])}.\n"
            rows = [_rule(rule, found) for rule, found in balanced["rules"].items() if rule in RULES]
            yield from table(["rule", *names, "mean", "over min-norm", f"share of {HACKABLE}"], rows)
        yield from _meters(bank)


def _rule(rule: str, found: dict[str, Any]) -> list[str]:
    gain = found["gain_over_min_norm"]
    value, error = gain["value"][-1], gain["se"][-1]
    cosines, share = found["cosine"]["value"], found["alpha"]["value"][-1]
    return [rule, *map(_number, cosines), f"{_number(value)} ({_number(error, '.2f')})", _number(share, ".3f")]


def _meters(bank: dict[str, Any]) -> Iterator[str]:
    """The two meters of |signal|^2, in units of the truth."""
    meters, names = bank["meters"], bank["names"]
    halves, time = meters["halves_sd"]["value"], meters["time_sd"]["value"]
    if all(value is None for value in (*halves, *time)):
        return
    yield f"The spread of each meter of |signal|^2, in units of the truth. The meter in time uses beta = {meters['beta']}.\n"
    rows = [
        [name, _number(h, ".2f"), _number(t, ".2f"), _number(None if not h or t is None else t / h, ".2f")]
        for name, h, t in zip(names, halves, time, strict=True)
    ]
    yield from table(["reward", "halves", "time", "ratio"], rows)


def _rates() -> Iterator[str]:
    yield "## One learning rate for all arms\n"
    yield (
        "We chose it on seed 100, which no study reports: the rate with the highest mean over both arms. `rate.yaml` is for A and G, "
        "`rate_five.yaml` for the studies of the demo's five rewards, whose steps have twice as many images.\n"
    )
    for name in ("rate", "rate_five"):
        yield from _rate(name)


def _rate(name: str) -> Iterator[str]:
    found = cells(name)
    if not found:
        yield f"`{name}.yaml`: not measured yet.\n"
        return
    rows = [[arm, _with(_legitimate(own))] for arm, own in _by_arm(found).items()]
    yield from table([f"`{name}.yaml`: the arm and its rate", "the five legitimate rewards"], rows)
    means: dict[str, list[float]] = {}
    for cell in found:
        means.setdefault(cell.arm.split()[-1], []).append(_legitimate([cell]).mean)
    whole = {rate: fmean(values) for rate, values in means.items() if len(values) == 2}
    if len(whole) == 3:
        best = max(whole, key=lambda rate: whole[rate])
        yield f"The best mean over both arms: {best}, {whole[best]:+.3f} ({', '.join(f'{r}: {m:+.3f}' for r, m in whole.items())}).\n"


def _study(stage: str, name: str, verdicts: Callable[[Sequence[Cell]], Sequence[str]] | None = None) -> Iterator[str]:
    study = Study.read(STUDIES / f"{name}.yaml")
    yield f"## {stage}. {CLAIMS[stage]['title']}\n"
    found = cells(name)
    whole = len(found) == len(study.cells)
    said = verdicts(found) if whole and verdicts else [""] * len(CLAIMS[stage]["claims"])
    yield from (f"- {claim}{verdict}" for claim, verdict in zip(CLAIMS[stage]["claims"], said, strict=True))
    yield ""
    if not found:
        yield f"Not measured yet: `{name}.yaml`.\n"
        return
    yield f"`{name}.yaml`: {len(found)} of {len(study.cells)} cells are finished.\n"
    rewards = [reward for reward in (*LEGITIMATE, HACKABLE) if reward in found[0].rewards]
    for step in sorted(found[0].evaluations):
        measured = {arm: gains(own, step) for arm, own in _by_arm(found).items()}
        rows = [
            [f"{arm} ({len(own)})", _with(_legitimate(own, step)), *(_with(measured[arm][r].estimate) for r in rewards)]
            for arm, own in _by_arm(found).items()
        ]
        yield from table([f"after {step} steps: arm (seeds)", "the five", *rewards], rows)
    yield from _beside(found, HACKABLE in rewards)


def _beside(found: Sequence[Cell], hackable: bool) -> Iterator[str]:
    """What stands beside the gains, after the last step."""
    arms = _by_arm(found)
    guided = any(cell.free_roles for cell in found)
    rows = []
    for arm, own in arms.items():
        over = _over(own, arms.get("equal", ()))
        row = [arm, _diversity(own), _hacked(own), _alarms(own), _with(over) if over else "-"]
        row += [_over_guidance(own)] if guided else []
        rows.append([*row, _share(own)] if hackable else row)
    watching = "hacking alarms while it trained (first step)"
    head = ["arm", "diversity against the base", watching, "alarms of the evaluation", "the five, over equal"]
    head += ["the five, over guidance at equal diversity (rewards ahead)"] if guided else []
    yield from table([*head, f"share of {HACKABLE}"] if hackable else head, rows)


def default_of(found: Sequence[Cell]) -> str:
    """The default by A's first rule."""
    arms = _by_arm(found)
    over = {arm: _over(own, arms["equal"]) for arm, own in arms.items() if arm not in ("marble", "equal")}
    ahead = [arm for arm, difference in over.items() if difference and difference.low > 0]
    return max(ahead, key=lambda arm: _legitimate(arms[arm]).low, default="equal")


def _verdicts_of_a(found: Sequence[Cell]) -> list[str]:
    default = default_of(found)
    own = _by_arm(found)[default]
    measured = gains(own, max(own[0].evaluations))
    low = {name: measured[name].estimate.low for name in LEGITIMATE}
    alarms = {arm: len(_first_alarms(_by_arm(found)[arm])) for arm in ("marble", "equal")}
    return [
        f" **It is `{default}`.**",
        _verdict(min(low.values()) > 0, f"the lowest bound is {min(low, key=lambda n: low[n])}'s, {min(low.values()):+.2f}"),
        _verdict(fmean(_shares(own)) <= 1 / 6 + 1e-5, f"{fmean(_shares(own)):.3f}"),
        _verdict(alarms["marble"] >= 7 and alarms["equal"] <= 1, f"{alarms['marble']} and {alarms['equal']} of 8"),
    ]


def _verdicts_of_b(found: Sequence[Cell]) -> list[str]:
    default, arms = default_of(cells("hackable")), _by_arm(found)
    own, step = arms[default], max(found[0].evaluations)
    over = {arm: paired(own, others, step)[MEAN].estimate.low for arm, others in arms.items() if arm != default}
    seeds = [min(gains([cell], step)[name].estimate.mean for name in LEGITIMATE) for cell in own]
    worst = min(over, key=lambda arm: over[arm])
    return [
        _verdict(over[worst] >= -0.05, f"the lowest is {over[worst]:+.2f}, against {worst}"),
        _verdict(min(seeds) > 0, f"the smallest gain of one reward in one seed is {min(seeds):+.2f}"),
    ]


def _verdict(holds: bool, figure: str) -> str:
    return f" **{'It holds' if holds else 'It does not hold'}: {figure}.**"


def _by_arm(found: Sequence[Cell]) -> dict[str, list[Cell]]:
    return {arm: [cell for cell in found if cell.arm == arm] for arm in dict.fromkeys(cell.arm for cell in found)}


def _without_the_hackable(found: Sequence[Cell]) -> list[Cell]:
    return [replace(cell, rewards=tuple(n for n in cell.rewards if n in LEGITIMATE), held_out=()) for cell in found]


def _legitimate(found: Sequence[Cell], step: int | None = None) -> Estimate:
    return gains(_without_the_hackable(found), step or max(found[0].evaluations))[MEAN].estimate


def _over(own: Sequence[Cell], others: Sequence[Cell]) -> Estimate | None:
    """The mean gain of the five less that of another arm, paired; None of an arm beside itself."""
    if not others or own[0].arm == others[0].arm:
        return None
    difference = paired(_without_the_hackable(own), _without_the_hackable(others), max(own[0].evaluations))
    return difference[MEAN].estimate if difference else None


def _over_guidance(own: Sequence[Cell]) -> str:
    over = over_guidance(_without_the_hackable(own), max(own[0].evaluations))
    ahead = sum(over[name].estimate.low > 0 for name in LEGITIMATE)
    return f"{_with(over[MEAN].estimate)} ({ahead} of {len(LEGITIMATE)})"


def _shares(own: Sequence[Cell]) -> list[float]:
    metric = f"alpha/{HACKABLE}"
    return [float(as_array(cell.history[metric]).mean()) for cell in own if metric in cell.history]


def _share(own: Sequence[Cell]) -> str:
    found = _shares(own)
    return f"{fmean(found):.3f} ({min(found):.3f} to {max(found):.3f})" if found else "-"


def _diversity(own: Sequence[Cell]) -> str:
    last = [cell.evaluations[max(cell.evaluations)].diversity for cell in own]
    changes = [100 * d.change.mean for d in last if d]
    return f"{fmean(changes):+.0f} % ({min(changes):+.0f} to {max(changes):+.0f})" if changes else "-"


def _hacked(own: Sequence[Cell]) -> str:
    raised = _first_alarms(own)
    return f"{len(raised)} of {len(own)}" + (f" ({', '.join(map(str, raised))})" if raised else "")


def _first_alarms(own: Sequence[Cell]) -> list[int]:
    """Of each run in which a look raised an alarm that counts as hacking, the first such step. Loss of diversity does not count."""
    steps = [[step for step, alarms in cell.watched.items() if any(a.kind in HACKED for a in alarms)] for cell in own]
    return sorted(min(found) for found in steps if found)


def _alarms(own: Sequence[Cell]) -> str:
    last = [{alarm.kind for alarm in cell.evaluations[max(cell.evaluations)].alarms} for cell in own]
    kinds = sorted(set().union(*last))
    return ", ".join(f"{kind}: {sum(kind in alarms for alarms in last)} of {len(own)}" for kind in kinds) or "none"


def _open(stages: str) -> Iterator[str]:
    yield "## Not measured yet\n"
    for stage in stages:
        yield from (f"- {stage}. {claim}" for claim in CLAIMS[stage]["claims"])
    yield ""


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv:
        sys.exit(
            0 if PAGE.read_text(encoding="utf-8") == text else "docs/evidence.md is not what docs/evidence.py writes: run it."
        )
    PAGE.write_text(text, encoding="utf-8")
