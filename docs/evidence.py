"""Writes evidence.md from the studies' finished cells and banks beside it: python docs/evidence.py [--check]

A number in evidence.md has no other source. Cells lie in studies/NAME/ARM/seed-N.json, as `marble study` left them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from marble_core.bench.study import Study
from marble_core.evaluation.cell import Cell, as_array
from marble_core.evaluation.over_seeds import MEAN, gains, paired
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

CLAIMS = {
    "A": (
        (
            "The default is the arm other than `marble` and `equal` whose mean gain of the five legitimate rewards has the highest lower "
            "bound; `equal` where none of them is ahead of it by its own interval."
        ),
        "Each legitimate reward's interval of the default lies above 0.",
        "The share of compressibility in the default's update is at most its prior's, 1/6, with no reward named.",
        "By step 20 a hacking alarm has been raised in at least 7 of 8 runs of `marble` and in at most 1 of 8 of `equal`.",
    ),
    "B": (
        (
            "Five rewards, 64 steps, evaluated at 32 and 64, five seeds, arms weighted_sum, equal, marble, auto: the lower bound of the "
            "default against each other arm is at least -.05."
        ),
        "All five rewards are up in each seed.",
    ),
    "C": (
        (
            "Diversity, five seeds, B's winner with the guard and with the forward KL: at equal diversity above the best guided base on at "
            "least four of five rewards, and the curve of gain against diversity above guidance's and strength's."
        ),
    ),
    "D": ("The winner and equal resumed to 160 steps, two seeds: the gain at 160 is at least that at 64.",),
    "E": ("gdpo, mgda and the released refresh of every tenth step, three seeds, 32 steps: reported, no threshold.",),
    "F": ("Sixteen rewards, two arms, two seeds: reported, no threshold.",),
    "G": ("A second pretrained demo base, A's equal, marble and auto, three seeds: the order of the arms is A's.",),
}


def page() -> str:
    return "\n".join([OPENING, *_bank(), *_rate(), *_hackable(), *_open("BCDEFG")])


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


def _rate() -> Iterator[str]:
    yield "## One learning rate for all arms\n"
    yield "We chose it before the studies, on seed 100, which no study reports: the rate with the highest mean over both arms.\n"
    found = cells("rate")
    if not found:
        yield "Not measured yet.\n"
        return
    yield from _gains(found, ["the arm and its rate", "the five legitimate rewards"])
    means: dict[str, list[float]] = {}
    for cell in found:
        means.setdefault(cell.arm.split()[-1], []).append(_legitimate([cell]).mean)
    whole = {rate: fmean(values) for rate, values in means.items() if len(values) == 2}
    if len(whole) == 3:
        best = max(whole, key=lambda rate: whole[rate])
        yield f"The best mean over both arms: {best}, {whole[best]:+.3f} ({', '.join(f'{r}: {m:+.3f}' for r, m in whole.items())}).\n"


def _hackable() -> Iterator[str]:
    study = Study.read(STUDIES / "hackable.yaml")
    yield "## A. One reward of six is hacked by emptying the image\n"
    yield from (f"- {claim}" for claim in CLAIMS["A"])
    yield ""
    found = cells("hackable")
    if not found:
        yield "Not measured yet.\n"
        return
    yield f"{len(found)} of {len(study.cells)} cells are finished.\n"
    yield from _gains(found, ["arm (seeds)", "the five", *LEGITIMATE, HACKABLE])
    rows = []
    for arm in dict.fromkeys(cell.arm for cell in found):
        own = [cell for cell in found if cell.arm == arm]
        equal = [c for c in found if c.arm == "equal"]
        rows.append([arm, _share(own), _diversity(own), _hacked(own), _alarms(own), _against(own, equal)])
    watching = "hacking alarms while it trained (first step)"
    yield from table(
        [
            "arm",
            f"share of {HACKABLE}",
            "diversity against the base",
            watching,
            "alarms of the evaluation",
            "the five, over equal",
        ],
        rows,
    )


def _gains(found: Sequence[Cell], head: list[str]) -> Iterator[str]:
    rows = []
    for arm in dict.fromkeys(cell.arm for cell in found):
        own = [cell for cell in found if cell.arm == arm]
        step = max(own[0].evaluations)
        measured = gains(own, step)
        by_reward = [_with(measured[name].estimate) for name in head[2:]]
        rows.append([f"{arm} ({len(own)})" if len(head) > 2 else arm, _with(_legitimate(own)), *by_reward])
    yield from table(head, rows)


def _without_the_hackable(found: Sequence[Cell]) -> list[Cell]:
    return [replace(cell, rewards=tuple(n for n in cell.rewards if n in LEGITIMATE), held_out=()) for cell in found]


def _legitimate(found: Sequence[Cell]) -> Estimate:
    return gains(_without_the_hackable(found), max(found[0].evaluations))[MEAN].estimate


def _against(own: Sequence[Cell], equal: Sequence[Cell]) -> str:
    step = max(own[0].evaluations)
    difference = paired(_without_the_hackable(own), _without_the_hackable(equal), step)
    return _with(difference[MEAN].estimate) if difference and own[0].arm != "equal" else "-"


def _share(own: Sequence[Cell]) -> str:
    metric = f"alpha/{HACKABLE}"
    found = [float(as_array(cell.history[metric]).mean()) for cell in own if metric in cell.history]
    return f"{fmean(found):.3f} ({min(found):.3f} to {max(found):.3f})" if found else "-"


def _diversity(own: Sequence[Cell]) -> str:
    last = [cell.evaluations[max(cell.evaluations)].diversity for cell in own]
    changes = [100 * d.change.mean for d in last if d]
    return f"{fmean(changes):+.0f} % ({min(changes):+.0f} to {max(changes):+.0f})" if changes else "-"


def _hacked(own: Sequence[Cell]) -> str:
    """The runs in which a look raised an alarm that counts as hacking, and the first such steps. Loss of diversity does not count."""
    first = [min((s for s, alarms in c.watched.items() if any(a.kind in HACKED for a in alarms)), default=None) for c in own]
    raised = sorted(step for step in first if step is not None)
    return f"{len(raised)} of {len(own)}" + (f" ({', '.join(map(str, raised))})" if raised else "")


def _alarms(own: Sequence[Cell]) -> str:
    last = [{alarm.kind for alarm in cell.evaluations[max(cell.evaluations)].alarms} for cell in own]
    kinds = sorted(set().union(*last))
    return ", ".join(f"{kind}: {sum(kind in alarms for alarms in last)} of {len(own)}" for kind in kinds) or "none"


def _open(stages: str) -> Iterator[str]:
    yield "## Not measured yet\n"
    for stage in stages:
        yield from (f"- {stage}. {claim}" for claim in CLAIMS[stage])
    yield ""


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv:
        sys.exit(
            0 if PAGE.read_text(encoding="utf-8") == text else "docs/evidence.md is not what docs/evidence.py writes: run it."
        )
    PAGE.write_text(text, encoding="utf-8")
