"""Votes that come back: they are counted into the evaluation, the gate decides anew, and the pages say so."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from marble_core.config.loading import read_config
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import CONFIG, EVALUATION, IMAGES, REPORT_INPUTS
from marble_core.evaluation.decision_file import read_decision, write_decision
from marble_core.evaluation.gate import REHEARSED, Decision, decide, rehearsed
from marble_core.evaluation.results import Evaluation, Votes
from marble_core.evaluation.votes import Ballot, Cast, cast_votes, counted
from marble_core.report.pages import rewrite_pages
from marble_core.types import MarbleError


@dataclass(frozen=True)
class Counted:
    """What a file of votes came to: its votes, all votes so far, the decision, and that sentence of it which says what was before; the
    sentence is empty where the file changed nothing."""

    cast: Cast
    votes: Votes
    decision: Decision
    anew: str
    config: RunConfig

    @property
    def sentence(self) -> str:
        many, again = _many(self.cast.added), _many(self.cast.again)
        if not self.cast.added:
            return f"{again} of {self.cast.voter}: counted before; with all votes, {self.votes}."
        before = f" ({self.cast.again} more were counted before)" if self.cast.again else ""
        return f"{many} of {self.cast.voter} added{before}; with all votes, {self.votes}."


def _many(votes: int) -> str:
    return "1 vote" if votes == 1 else f"{votes} votes"


def count_votes(file: Path, here: Path, run: str, images: Path) -> Counted:
    """Add the votes of ``file`` to the evaluation in the directory ``here``, and write its evaluation.json and decision.json anew.

    counted_votes.json is written last. So where this dies, the same file added again brings everything to the same end.
    ``images`` is the directory of scores.jsonl. Raises MarbleError as cast_votes does, and where there is no evaluation; then nothing
    is written.
    """
    config = read_config(here / CONFIG)
    before, evaluation, changed = read_decision(here, config.registry)
    if evaluation is None:
        raise MarbleError(f"The run {run} trained nothing, so there is nothing to vote on.")
    cast = cast_votes(file, Ballot.of(run, images), here)
    votes, earlier = counted(cast.box), counted(cast.earlier) if cast.earlier.votes else None
    if evaluation.votes == votes == earlier and not changed:
        return Counted(cast, votes, before, "", config)
    new = votes.votes - (earlier.votes if earlier else 0)
    rehearsal = before.verdict == REHEARSED
    if evaluation.votes != earlier:  # an adding that died has left them
        before = _decided(replace(evaluation, votes=earlier), config, rehearsal)
    evaluation = replace(evaluation, votes=votes)
    evaluation.save(here / EVALUATION)
    decision = _decided(evaluation, config, rehearsal)
    without = f"; without the last {new} it was: {before.summary}" if new else ""
    anew = f"Decided anew with {votes.votes} blind votes{without}."
    decision = replace(decision, reasons=(*decision.reasons, anew))
    write_decision(here, decision, config.registry)
    cast.box.save(here)
    return Counted(cast, votes, decision, anew, config)


def _decided(evaluation: Evaluation, config: RunConfig, rehearsal: bool) -> Decision:
    decision = decide(evaluation, config.registry)
    return rehearsed(decision) if rehearsal else decision


def vote_on_disk(file: Path, here: Path, history: Path) -> Counted:
    """count_votes for an evaluation with all its files: report.html and explorer.html are written anew too."""
    inputs = here / REPORT_INPUTS
    try:
        run = str(json.loads(inputs.read_bytes())["run"])
    except (OSError, ValueError, LookupError, TypeError):
        raise MarbleError(
            f"There is no {inputs} as evaluate writes it, so this run had no blind vote: run the evaluate stage again."
        ) from None
    found = count_votes(file, here, run, here / IMAGES)
    rewrite_pages(here, Evaluation.load(here / EVALUATION), found.decision, history, found.config)
    return found
