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
from marble_core.evaluation.votes import Ballot, add_votes
from marble_core.report.pages import rewrite_pages
from marble_core.types import MarbleError


@dataclass(frozen=True)
class Counted:
    """What a file of votes came to: how many, whose, all votes so far, the decision, and that sentence of it which says what was before."""

    added: int
    voter: str
    votes: Votes
    decision: Decision
    anew: str
    config: RunConfig

    @property
    def sentence(self) -> str:
        many = "1 vote" if self.added == 1 else f"{self.added} votes"
        return f"{many} of {self.voter} added; with all votes, {self.votes}."


def count_votes(file: Path, here: Path, run: str, images: Path) -> Counted:
    """Add the votes of ``file`` to the evaluation in the directory ``here``, and write its evaluation.json and decision.json anew.

    ``images`` is the directory of scores.jsonl. Raises MarbleError as add_votes does, and where there is no evaluation; then nothing
    is written.
    """
    config = read_config(here / CONFIG)
    before, evaluation, _ = read_decision(here, config.registry)
    if evaluation is None:
        raise MarbleError(f"The run {run} trained nothing, so there is nothing to vote on.")
    added, voter, votes = add_votes(file, Ballot.of(run, images), here)
    evaluation = replace(evaluation, votes=votes)
    evaluation.save(here / EVALUATION)
    decision = decide(evaluation, config.registry)
    decision = rehearsed(decision) if before.verdict == REHEARSED else decision
    anew = f"Decided anew with {votes.votes} blind votes; without the last {added} it was: {before.summary}."
    decision = replace(decision, reasons=(*decision.reasons, anew))
    write_decision(here, decision, config.registry)
    return Counted(added, voter, votes, decision, anew, config)


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
