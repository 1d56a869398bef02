"""Blind votes: what they come to, what is refused, and what the gate makes of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import one_sentence, run_marble
from marble_core.config.schema import RegistryConfig
from marble_core.evaluation.decision_file import read_decision, write_decision
from marble_core.evaluation.gate import decide, rehearsed
from marble_core.evaluation.results import Estimate, Evaluation, Votes
from marble_core.evaluation.votes import Ballot, Box, Vote, win_rate
from marble_core.report.voting import Counted, count_votes, vote_on_disk
from marble_core.types import MarbleError
from report_builders import evaluated
from vote_builders import data_of, lay_out_vote, voted_config, votes_of, write_votes


def cast(won_PV: np.ndarray) -> list[Vote]:
    """Of a table of prompts and voters; NaN where a voter did not answer."""
    return [Vote(voter=str(v), index=p, won=float(won)) for (p, v), won in np.ndenumerate(won_PV) if not np.isnan(won)]


def test_the_win_rate_is_the_share_of_votes_and_neither_counts_half() -> None:
    found = win_rate(cast(np.array([[1.0, 1.0], [0.0, 0.5], [1.0, np.nan]])))
    assert found.mean == pytest.approx(3.5 / 5) and found.low < 0.7 < found.high


@pytest.mark.parametrize(("prompt_sd", "voter_sd"), [(0.0, 0.0), (0.25, 0.0), (0.0, 0.15), (0.2, 0.1)])
def test_the_interval_covers_the_truth_where_prompts_and_voters_differ(prompt_sd: float, voter_sd: float) -> None:
    """80 votings on 40 prompts by 12 voters, whose true share is known; unclustered, half of the third kind's would miss it."""
    rng, truth, covered = np.random.default_rng(7), 0.55, 0
    for _ in range(80):
        chance_PV = truth + prompt_sd * rng.uniform(-1, 1, (40, 1)) + voter_sd * rng.choice([-1, 1], (1, 12))
        found = win_rate(cast((rng.random((40, 12)) < chance_PV).astype(float)))
        covered += found.low <= truth <= found.high
    assert covered >= 0.9 * 80


def test_votes_on_the_same_few_prompts_or_by_the_same_few_people_leave_a_wider_interval() -> None:
    rng = np.random.default_rng(0)
    by_prompt = np.repeat((rng.random((20, 1)) < 0.6).astype(float), 20, axis=1)
    apart = rng.permuted(by_prompt.ravel()).reshape(20, 20)

    def width(won_PV: np.ndarray) -> float:
        found = win_rate(cast(won_PV))
        return found.high - found.low

    assert width(by_prompt) > 2 * width(apart) and width(by_prompt.T) > 2 * width(apart)


def test_votes_that_all_agree_are_not_certain() -> None:
    """Wilson's end for 20 of 20 at 95 %, as tables have it."""
    assert win_rate(cast(np.ones((20, 3)))).low == pytest.approx(0.8389, abs=1e-4)
    assert win_rate(cast(np.zeros((20, 1)))).high == pytest.approx(0.1611, abs=1e-4)


def test_the_ballot_is_the_same_again_and_is_drawn_without_a_look_at_the_scores(tmp_path: Path) -> None:
    here = lay_out_vote(tmp_path / "runs", per_source=40)
    ballot = Ballot.of("monday", here / "images")
    assert len(ballot.pairs) == 60 and Ballot.of("monday", here / "images") == ballot
    indices = sorted(pair.index for pair in ballot.pairs.values())
    assert indices != list(range(60)) and {i // 40 for i in indices} == {0, 1, 2}
    first = [next(iter(pair.roles.values())) for pair in ballot.pairs.values()]
    assert 15 < first.count("trained") < 45, "the order of an image's ids says nothing"
    assert not set(Ballot.of("tuesday", here / "images").pairs) & set(ballot.pairs)


@pytest.mark.parametrize("champion", [False, True])
def test_a_file_of_votes_is_counted_for_the_model_whose_image_was_chosen(tmp_path: Path, champion: bool) -> None:
    here = lay_out_vote(tmp_path / ".marble" / "runs", champion=champion)
    rival = "champion" if champion else "base"
    votes_of_ann = votes_of(here, "ann", lambda prompt, rival: "trained" if int(prompt.split()[-1]) % 3 else rival)
    assert Ballot.of("monday", here / "images").rival == rival
    history = here.parents[1] / "train" / "adapter" / "history.jsonl"
    counted = vote_on_disk(write_votes(tmp_path / "ann.json", votes_of_ann), here, history)
    assert (counted.cast.added, counted.votes.rival, counted.votes.prompts) == (42, rival, 42)
    assert counted.votes.win_rate.mean == pytest.approx(28 / 42), "a third of 42 prompts have a number that 3 divides"
    neither = votes_of(here, "bob", lambda prompt, rival: "")
    counted = vote_on_disk(write_votes(tmp_path / "bob.json", neither), here, history)
    assert (counted.votes.votes, counted.votes.voters) == (84, 2)
    assert counted.votes.win_rate.mean == pytest.approx((28 + 21) / 84)
    decision, evaluation, anew = read_decision(here, voted_config(None).registry)
    assert evaluation is not None and evaluation.votes == counted.votes and anew == ""
    assert decision.reasons[-1].startswith("Decided anew with 84 blind votes; without the last 42 it was: promoted.")
    page = (here / "report.html").read_text("utf-8")
    assert f"Blind votes against the {rival}, 84 by 2 people" in page and "58 %" in page and "Decided anew with 84" in page


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs, of which there is one with 12 pairs."""
    runs = tmp_path_factory.mktemp("small")
    lay_out_vote(runs, per_source=4)
    return runs


def add(here: Path, votes: dict[str, Any], scratch: Path) -> Counted:
    return count_votes(write_votes(scratch / "votes.json", votes), here, "monday", here / "images")


def files_of(here: Path) -> dict[str, Any]:
    """What votes change, and the drafts that a kill leaves aside."""
    return {path.name: json.loads(path.read_bytes()) for path in here.glob("[!.]*.json")}


def other_run(votes: dict[str, Any]) -> None:
    votes |= {"run": "tuesday", "ballot": "0" * 16}


def other_evaluation(votes: dict[str, Any]) -> None:
    votes["ballot"] = "0" * 16


def unknown_pair(votes: dict[str, Any]) -> None:
    votes["votes"][3]["pair"] = "0" * 16


def image_of_another_pair(votes: dict[str, Any]) -> None:
    votes["votes"][3]["chosen"] = votes["votes"][4]["chosen"]


def twice_within(votes: dict[str, Any]) -> None:
    votes["votes"].append(dict(votes["votes"][0]))


def empty(votes: dict[str, Any]) -> None:
    votes["votes"] = []


def no_voter(votes: dict[str, Any]) -> None:
    del votes["voter"]


def format_of_tomorrow(votes: dict[str, Any]) -> None:
    votes["format"] = 2


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (other_run, "are of run tuesday, not of monday"),
        (other_evaluation, "are of another evaluation of this run"),
        (unknown_pair, "votes on a pair or an image that the ballot of monday does not have"),
        (image_of_another_pair, "votes on a pair or an image that the ballot of monday does not have"),
        (twice_within, "has a second vote of ann on prompt"),
        (empty, "holds no vote"),
        (no_voter, "is not a whole file of votes (voter"),
        (format_of_tomorrow, "is not a whole file of votes (format"),
        (None, "is not a whole file of votes (the file"),
    ],
)
def test_a_file_that_cannot_be_counted_is_one_sentence_with_exit_code_2_and_changes_nothing(
    spoil: Callable[[dict[str, Any]], None] | None,
    says: str,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small, tmp_path / ".marble" / "runs")
    (here,) = tmp_path.glob(".marble/runs/monday/artifacts/*/evaluate/evaluation")
    votes = votes_of(here, "ann", lambda prompt, rival: "trained")
    if spoil:
        spoil(votes)
    file = write_votes(tmp_path / "votes.json", votes)
    if not spoil:
        file.write_bytes(file.read_bytes()[:-20])  # a download that was cut off
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    code = run_marble("votes", "add", "monday", "votes.json", monkeypatch=monkeypatch)
    assert code == 2
    one_sentence(capsys.readouterr().err, "votes.json", says)
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_votes_are_counted_once_however_often_their_file_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    here = lay_out_vote(tmp_path / ".marble" / "runs")
    write_votes(tmp_path / "a.json", votes_of(here, "ann", lambda prompt, rival: "trained", last=10))
    write_votes(tmp_path / "b.json", votes_of(here, "ann", lambda prompt, rival: rival, first=10))
    assert run_marble("votes", "add", "monday", "a.json", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "10 votes of ann added; with all votes, it won 100 % (72 to 100) of 10 blind votes against the base,"
    )
    assert "without the last 10 it was: promoted. Now: promoted." in said and "registry.votes is not set" in said
    kept = files_of(here)
    assert run_marble("votes", "add", "monday", "a.json", monkeypatch=monkeypatch) == 0
    again = capsys.readouterr().out
    assert again.startswith("10 votes of ann: counted before; with all votes, it won 100 % (72 to 100) of 10 blind votes")
    assert "\nNow: promoted. " in again and files_of(here) == kept
    assert run_marble("votes", "add", "monday", "b.json", monkeypatch=monkeypatch) == 0
    assert "of 42 blind votes" in capsys.readouterr().out
    assert len(json.loads((here / "counted_votes.json").read_text())["votes"]) == 42


def test_who_goes_on_voting_hands_in_all_answers_and_the_new_ones_are_added(tmp_path: Path) -> None:
    here = lay_out_vote(tmp_path / "runs", per_source=4)
    add(here, votes_of(here, "Ann", lambda prompt, rival: "trained", last=5), tmp_path)
    counted = add(here, votes_of(here, " ANN ", lambda prompt, rival: "trained"), tmp_path)
    assert counted.sentence.startswith("7 votes of ANN added (5 more were counted before); with all votes, it won 100 %")
    assert (counted.votes.votes, counted.votes.voters, counted.votes.prompts) == (12, 1, 12)
    kept = files_of(here)
    with pytest.raises(MarbleError, match=r"has a second vote of ann on prompt .* the first counts"):
        add(here, votes_of(here, "ann", lambda prompt, rival: rival, first=9), tmp_path)
    assert files_of(here) == kept


def test_a_voter_counts_once_per_pair_however_the_name_is_spelt_and_no_box_may_say_otherwise(tmp_path: Path) -> None:
    """Two real people leave a wider interval than one, so a second spelling must not pass for a second person."""
    one = [Vote(voter=name, index=p, won=float(p % 3 > 0)) for p, name in enumerate(("Ann", "ann", " ANN") * 10)]
    assert win_rate(one) == win_rate([vote.model_copy(update={"voter": "ann"}) for vote in one])
    twice = [Vote(voter="Ann", index=1, won=1.0), Vote(voter="ann ", index=1, won=1.0)]
    (tmp_path / "counted_votes.json").write_text(json.dumps({"rival": "base", "votes": [v.model_dump() for v in twice]}))
    with pytest.raises(MarbleError, match="is not what marble votes add wrote"):
        Box.load(tmp_path, "base")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What evaluate left of a run with 21 pairs whose gate asks for votes."""
    return lay_out_vote(tmp_path_factory.mktemp("asked"), share=0.5, per_source=7)


@pytest.mark.parametrize("verdict", ["promoted", "rehearsed"])
@pytest.mark.parametrize("moment", range(3))
def test_an_adding_that_is_killed_is_completed_by_adding_the_same_file_again(
    asked: Path, tmp_path: Path, moment: int, verdict: str
) -> None:
    """Killed before the first, second or third of the files that it replaces: evaluation.json, decision.json, counted_votes.json."""
    whole, died = (Path(shutil.copytree(asked, tmp_path / name)) for name in ("whole", "died"))
    for here in (whole, died):
        registry = voted_config(0.5).registry
        if verdict == "rehearsed":
            write_decision(here, rehearsed(read_decision(here, registry)[0]), registry)
        add(here, votes_of(here, "bob", lambda prompt, rival: "", last=6), tmp_path)
    votes = votes_of(died, "ann", lambda prompt, rival: "trained")
    expected = add(whole, votes, tmp_path)
    child = os.fork()
    if not child:
        replaced = iter([os.replace] * moment)
        os.replace = lambda *paths: next(replaced, lambda *_: os.kill(os.getpid(), signal.SIGKILL))(*paths)
        try:
            add(died, votes, tmp_path)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert add(died, votes, tmp_path) == expected and expected.cast.added == 21
    assert files_of(died) == files_of(whole)
    assert "without the last 21 it was: " in expected.anew and (expected.decision.verdict == "rehearsed") == (
        verdict == "rehearsed"
    )


def voted(mean: float, low: float, high: float, prompts: int = 42) -> Evaluation:
    return replace(evaluated(), votes=Votes("base", 2 * prompts, 2, prompts, Estimate(mean, low, high)))


@pytest.mark.parametrize(
    ("evaluation", "verdict", "says"),
    [
        (evaluated(), "not measured", "registry.votes asks for blind votes, and none is in"),
        (voted(0.9, 0.8, 1.0, 19), "not measured", "Blind votes are on only 19 prompts"),
        (voted(0.6, 0.5, 0.7), "not preferred", "it won 60 % (50 to 70) of 84 blind votes against the base, by 2 people"),
        (voted(0.6, 0.51, 0.7), "promoted", "gain over the base is"),
    ],
)
def test_the_gate_asks_people_where_it_is_told_to(evaluation: Evaluation, verdict: str, says: str) -> None:
    found = decide(evaluation, RegistryConfig(votes=0.5))
    assert found.verdict == verdict and says in found.reasons[0]


def test_the_gate_says_votes_that_it_was_not_asked_about_and_is_not_moved_by_them() -> None:
    against = voted(0.1, 0.0, 0.2)
    found = decide(against, RegistryConfig())
    assert found.verdict == decide(evaluated(), RegistryConfig()).verdict == "promoted"
    assert "Of people: it won 10 % (0 to 20) of 84 blind votes against the base, by 2 people on 42 prompts." in found.reasons


def test_the_page_of_the_votes_does_not_say_whose_an_image_is(tmp_path: Path) -> None:
    """No role, no file's name, no score; and nothing that stays the same over pairs tells the two images of one apart."""
    here = lay_out_vote(tmp_path / "runs", champion=True)
    text = (here / "vote.html").read_text("utf-8")
    assert not any(word in text for word in ("champion", "trained", "base-", "scores", "clipscore", ".png"))
    data = data_of(here / "vote.html")
    assert all(set(image) == {"id", "uri"} for pair in data["pairs"] for image in pair["images"])
    assert all([i["id"] for i in pair["images"]] == sorted(i["id"] for i in pair["images"]) for pair in data["pairs"])
