"""What a decision-maker asks, answered in words: is it better, by how much, what is the catch, which prompt got worst, what next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marble_core.config.schema import RegistryConfig
from marble_core.evaluation.gate import REHEARSED, Decision, unconvinced
from marble_core.evaluation.results import Estimate, Evaluation
from marble_core.report.changes import change, changes
from marble_core.report.words import effect, listed, number

_SHORT = {
    "reward hacking": "a reward that was not trained on fell",
    "mode collapse": "the images of one prompt became more alike",
    "missing values": "a reward lacks values",
}
_ADVICE = {
    "reward hacking": "Look at the largest losses in the explorer. If the images confirm it, promote an earlier checkpoint, or train on "
    "that reward too.",
    "mode collapse": "Look at several images of one prompt before you use it. Fewer steps (train.steps) or a stronger pull to the base "
    "(loss.kl_beta) keep more diversity.",
    "missing values": "Mend the scorer and evaluate again; until then this reward says nothing of the images that it left out.",
}
_LONGEST = 140  # letters of a prompt within a sentence


@dataclass(frozen=True)
class Answers:
    """``headline`` is one sentence on all of it; the others are each the answer to one question."""

    headline: str
    better: str
    catch: str
    worst: str
    next: str


def answers(evaluation: Evaluation, decision: Decision, lines: Sequence[Mapping[str, Any]], config: RegistryConfig) -> Answers:
    """From the evaluation, the gate's decision and the lines of scores.jsonl."""
    gain, rival = _gain(evaluation)
    catches = _catches(evaluation, config.margin)
    amount = number(abs(gain.mean), 2)
    said = {
        "better": f"Better than {rival} by {amount} standard deviations on average",
        "worse": f"Worse than {rival} by {amount} standard deviations on average",
        "same": f"Not shown to be better than {rival}",
    }[effect(gain)]
    joint = "but" if gain.low > 0 else "and"
    catch = f"{joint} {catches[0][0]}" if catches else "with no catch found"
    outcome = "promoted" if decision.promote else f"refused ({decision.verdict})"
    outcome = "a rehearsal" if decision.verdict == REHEARSED else outcome
    return Answers(
        headline=f"{said}, {catch}: {outcome}.",
        better=f"{ {'better': 'Yes', 'worse': 'No', 'same': 'Not shown'}[effect(gain)] }: {_moved(evaluation)}",
        catch=" ".join(long for _, long in catches)
        or "None was found: no reward fell measurably, none may have fallen beyond the gate's margin, and there is no alarm.",
        worst=_worst(lines, evaluation),
        next=_next(evaluation, decision, config),
    )


def advice(kind: str) -> str:
    """What to do about an alarm of this kind."""
    return _ADVICE.get(kind, "Look at the images before you use the model.")


def _gain(evaluation: Evaluation) -> tuple[Estimate, str]:
    """The mean gain that the gate judges, and over whom."""
    if evaluation.champion:
        return evaluation.champion.mean_gain, f"the champion, version {evaluation.champion_version},"
    return evaluation.mean_gain, "the base"


def _moved(evaluation: Evaluation) -> str:
    groups: dict[str, list[str]] = {"better": [], "worse": [], "same": []}
    for name, result in evaluation.rewards.items():
        groups[effect(result.difference)].append(name)
    verbs = {"better": "rose", "worse": "fell", "same": "did not change measurably"}
    found = "; ".join(f"{listed(own)} {verbs[kind]}" for kind, own in groups.items() if own)
    return f"against the base {found}."


def _catches(evaluation: Evaluation, margin: float) -> list[tuple[str, str]]:
    """(in a clause, in a sentence), the weightiest first."""
    measured = evaluation.measured
    limits = {n: -margin * r.base_std for n, r in measured.items()}
    over = {n: [r.difference] for n, r in measured.items()}
    for name, versus in (evaluation.champion.rewards if evaluation.champion else {}).items():
        if name in over:
            over[name].append(versus.difference)
    harmed = [n for n, own in over.items() if any(d.high < limits[n] for d in own)]
    fell = [n for n, own in over.items() if any(d.high < 0 for d in own) and n not in harmed]
    open_ = [n for n, own in over.items() if any(d.low < limits[n] for d in own) and n not in (*harmed, *fell)]
    found = []
    if harmed:
        found.append((f"{listed(harmed)} got worse", f"{listed(harmed)} got worse by more than the gate's margin."))
    found += [
        (_SHORT.get(a.kind, f"there is an alarm, {a.kind}"), f"{a.kind.capitalize()} is suspected.") for a in evaluation.alarms
    ]
    if evaluation.missing:
        named = listed(evaluation.missing)
        found.append((f"{named} was not measured", f"Nothing is known of {named}, which applies to no held-out prompt."))
    if fell:
        found.append((f"{listed(fell)} fell", f"{listed(fell)} fell, within the gate's margin."))
    if open_:
        found.append(
            (f"harm to {listed(open_)} is not excluded", f"Harm to {listed(open_)} is not shown, but not excluded either.")
        )
    return found


def _worst(lines: Sequence[Mapping[str, Any]], evaluation: Evaluation) -> str:
    known = [line for line in lines if changes(line, evaluation)]
    if not known:
        return "Not known: no scores of single prompts were saved."
    worst = min(known, key=lambda line: change(line, evaluation))
    own = changes(worst, evaluation)
    name = min(own, key=lambda n: own[n])
    text = worst["prompt"] if len(worst["prompt"]) <= _LONGEST else f"{worst['prompt'][:_LONGEST]}…"
    digits = evaluation.measured[name].digits
    scores = f"{name} went from {number(worst['base'][name], digits)} to {number(worst['trained'][name], digits)}"
    if change(worst, evaluation) >= 0:
        return f"None got worse on average; least gained “{text}”: {scores}."
    return f"“{text}”: {scores}."


def _next(evaluation: Evaluation, decision: Decision, config: RegistryConfig) -> str:
    if decision.promote:
        first = "Settle the alarm first. " if evaluation.alarms else ""
        model = config.model
        return f"{first}Register makes it the champion of {model}: load models:/{model}@champion; marble rollback {model} undoes it."
    if decision.verdict == REHEARSED:
        return "This was a rehearsal: register says how long the whole run will take; start that."
    asked = unconvinced(evaluation, config)
    if asked and asked[1] in decision.reasons:
        return (
            "Let people answer the blind vote beside this page. Whoever has the run adds their files: marble votes add RUN votes.json."
            if asked[0] == "not measured"
            else "It is not registered as champion: look at the pairs of the blind vote, and train again."
        )
    todo = {
        "worse": "give the reward that got worse a larger share (balance.floor) or more prompts, and train again",
        "no gain": "train longer (train.steps), or evaluate on more held-out prompts, which narrows the interval",
        "not measured": "add held-out prompts for what was not measured or mend its scorer, and evaluate again",
        "less diverse": "train fewer steps (train.steps) or with a stronger pull to the base (loss.kl_beta), and evaluate again",
        "no better than guidance": "use the guided base meanwhile, and train longer (train.steps) or at another strength",
        "below a floor": "give that reward a larger share (balance.floor) and train on, or lower registry.floors",
    }
    return f"It is not registered as champion: {todo.get(decision.verdict, 'train again')}."
