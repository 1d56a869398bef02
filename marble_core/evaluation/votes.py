"""Blind votes: people see two images of one prompt from the same noise and say which is better, without knowing which is whose.

A ballot names pairs and images by digests of scores.jsonl, which the page of the votes (report/vote.py) does not hold. So a file of
votes says which image was chosen, and only who has the evaluation knows whose it was. docs/evaluation.md defines the numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from marble_core.config.stage_files import SCORES, VOTES
from marble_core.evaluation.results import Estimate, Votes
from marble_core.evaluation.statistics import CONFIDENCE
from marble_core.runtime.files import replace_text
from marble_core.runtime.seeding import derive
from marble_core.types import MarbleError

PAIRS = 60  # of a ballot: a quarter of an hour
RESAMPLES = 4000
Rival = Literal["base", "champion"]


@dataclass(frozen=True)
class Pair:
    """Two images of one prompt: each one's role and file by its id; the order of the ids says nothing."""

    id: str
    index: int
    prompt: str
    roles: Mapping[str, str]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Ballot:
    """The pairs of an evaluation by their ids; ``rival`` is the model that the trained one stands against."""

    id: str
    run: str
    rival: Rival
    pairs: Mapping[str, Pair]

    @classmethod
    def of(cls, run: str, images: Path) -> Ballot:
        """At most 60 prompts that have images, drawn without a look at their scores; against the champion where all have its image.

        ``images`` is the directory of scores.jsonl. Raises MarbleError where there is no such file.
        """
        scores = images / SCORES
        if not scores.is_file():
            raise MarbleError(f"There is no {scores}, so there is nothing to vote on: run the evaluate stage again.")
        text = scores.read_bytes()
        key = hashlib.sha256(run.encode() + b"\0" + text).hexdigest()
        lines = [json.loads(line) for line in text.decode("utf-8").split("\n") if line.strip()]
        shown = [line for line in lines if {"base", "trained"} <= set(line.get("pictures", {}))]
        rival: Rival = "champion" if shown and all("champion" in line["pictures"] for line in shown) else "base"
        pairs = sorted((_pair(key, line, rival) for line in shown), key=lambda pair: pair.id)[:PAIRS]
        return cls(_digest(key, "ballot"), run, rival, {pair.id: pair for pair in pairs})


def _pair(key: str, line: Mapping[str, Any], rival: Rival) -> Pair:
    ids = {_digest(key, line["index"], role): role for role in (rival, "trained")}
    roles = dict(sorted(ids.items()))
    files = {one: line["pictures"][role] for one, role in roles.items()}
    return Pair(_digest(key, line["index"]), line["index"], line["prompt"], roles, files)


def _digest(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:16]


_STRICT = ConfigDict(extra="forbid", strict=True)
Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class _Answer(BaseModel):
    model_config = _STRICT
    pair: Id
    chosen: Id | Literal[""]  # empty: neither is better


class _Returned(BaseModel):
    """What the page hands out to be sent back."""

    model_config = _STRICT
    format: Literal[1]
    ballot: Id
    run: str
    voter: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)]
    votes: list[_Answer]


class Vote(BaseModel):
    """``won`` is 1 where the trained model's image was chosen, 0 where the rival's, .5 where neither."""

    model_config = _STRICT
    voter: str
    index: int
    won: Annotated[float, Field(ge=0, le=1, multiple_of=0.5)]

    @property
    def by(self) -> str:
        """Who cast it: names that differ in capitals or spaces alone are one voter."""
        return " ".join(self.voter.casefold().split())


class Box(BaseModel):
    """counted_votes.json beside evaluation.json: all votes that were added, of each voter one per pair."""

    model_config = _STRICT
    format: Literal[1] = 1
    rival: Rival
    votes: list[Vote] = []

    @model_validator(mode="after")
    def _once(self) -> Self:
        if len({(vote.by, vote.index) for vote in self.votes}) < len(self.votes):
            raise ValueError("a voter has two votes on one pair")
        return self

    @classmethod
    def load(cls, directory: Path, rival: Rival) -> Box:
        """Empty where nothing was added yet. Raises MarbleError where the file is not what save wrote."""
        path = directory / VOTES
        if not path.exists():
            return cls(rival=rival)
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            raise MarbleError(
                f"{path} is not what marble votes add wrote: remove it, and add the files of votes again."
            ) from None

    def save(self, directory: Path) -> None:
        replace_text(directory / VOTES, self.model_dump_json(indent=1) + "\n")


@dataclass(frozen=True)
class Cast:
    """What a file of votes brings: ``added`` votes and ``again`` that were counted before, of one voter; the box before and after."""

    voter: str
    added: int
    again: int
    earlier: Box
    box: Box


def cast_votes(file: Path, ballot: Ballot, directory: Path) -> Cast:
    """The votes of a file beside those in counted_votes.json of ``directory``; nothing is written. A vote that was counted already, and
    is the same, adds nothing, so a file may be added again.

    Raises MarbleError where the file is damaged, of another ballot or of unknown pairs, or holds a second vote of a voter on a pair.
    """
    returned, box = _returned(file), Box.load(directory, ballot.rival)
    if returned.ballot != ballot.id:
        whose = f"run {returned.run}" if returned.run != ballot.run else "another evaluation of this run"
        raise MarbleError(
            f"The votes in {file} are of {whose}, not of {ballot.run} as it is now: add them to what they were cast on."
        )
    votes = [_decoded(answer, returned.voter, ballot, file) for answer in returned.votes]
    known = {(vote.by, vote.index): vote.won for vote in box.votes}
    counts = Counter(vote.index for vote in votes)
    twice = [vote.index for vote in votes if counts[vote.index] > 1 or known.get((vote.by, vote.index), vote.won) != vote.won]
    if twice:
        raise MarbleError(
            f"{file} has a second vote of {returned.voter} on prompt {twice[0]}: each voter has one vote per pair, and the first counts."
        )
    new = [vote for vote in votes if (vote.by, vote.index) not in known]
    return Cast(returned.voter, len(new), len(votes) - len(new), box, Box(rival=box.rival, votes=[*box.votes, *new]))


def _returned(file: Path) -> _Returned:
    try:
        found = _Returned.model_validate_json(file.read_bytes())
    except OSError as error:
        raise MarbleError(f"The votes {file} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "the file"
        raise MarbleError(
            f"{file} is not a whole file of votes ({at}: {first['msg']}): download it again from vote.html."
        ) from None
    if not found.votes:
        raise MarbleError(f"{file} holds no vote: answer at least one pair in vote.html, and download it again.")
    return found


def _decoded(answer: _Answer, voter: str, ballot: Ballot, file: Path) -> Vote:
    pair = ballot.pairs.get(answer.pair)
    if pair is None or answer.chosen not in ("", *pair.roles):
        raise MarbleError(
            f"{file} votes on a pair or an image that the ballot of {ballot.run} does not have: download it again."
        )
    won = 0.5 if not answer.chosen else float(pair.roles[answer.chosen] == "trained")
    return Vote(voter=voter, index=pair.index, won=won)


def counted(box: Box) -> Votes:
    """What the votes come to. Raises ValueError where there are none."""
    voters, prompts = ({getattr(vote, key) for vote in box.votes} for key in ("by", "index"))
    return Votes(box.rival, len(box.votes), len(voters), len(prompts), win_rate(box.votes))


def win_rate(votes: Sequence[Vote]) -> Estimate:
    """Mean of ``won``, and its 95 % interval clustered by prompt and by voter.

    Each resample draws prompts and, where there are several, voters with replacement; a vote counts the product of the two (Owen,
    "The pigeonhole bootstrap", 2007), which is never too narrow on average. Where all votes agree, no resample differs: the interval
    then ends where Wilson's of as many votes as there are prompts does. Raises ValueError without votes.
    """
    if not votes:
        raise ValueError("there are no votes")
    prompts, p_N = np.unique([vote.index for vote in votes], return_inverse=True)
    voters, v_N = np.unique([vote.by for vote in votes], return_inverse=True)
    won_N = np.array([vote.won for vote in votes], dtype=float)
    mean, z = float(won_N.mean()), NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    if won_N.min() == won_N.max():
        n = len(prompts)
        centre, half = (
            (mean + z**2 / 2 / n) / (1 + z**2 / n),
            z / (1 + z**2 / n) * np.sqrt(mean * (1 - mean) / n + (z / 2 / n) ** 2),
        )
        return Estimate(mean, min(mean, centre - half), max(mean, centre + half))
    cast_PV, won_PV = np.zeros((len(prompts), len(voters))), np.zeros((len(prompts), len(voters)))
    np.add.at(cast_PV, (p_N, v_N), 1)
    np.add.at(won_PV, (p_N, v_N), won_N)
    rng = np.random.default_rng(derive(0, "votes"))
    drawn_UP, drawn_UV = (
        rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) if n > 1 else np.ones((RESAMPLES, 1)) for n in cast_PV.shape
    )
    with np.errstate(invalid="ignore"):
        mean_U = ((drawn_UP @ won_PV) * drawn_UV).sum(1) / ((drawn_UP @ cast_PV) * drawn_UV).sum(1)
    low, high = np.nanquantile(mean_U, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(mean, float(low), float(high))
