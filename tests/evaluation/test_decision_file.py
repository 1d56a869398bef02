"""decision.json: what evaluate decided is what everybody reads, until what it was decided from changes."""

from pathlib import Path

import pytest

from marble_core.config.schema import RegistryConfig
from marble_core.evaluation.decision_file import read_decision, write_decision
from marble_core.evaluation.gate import Decision, decide
from marble_core.evaluation.results import Estimate, Evaluation, RewardResult
from marble_core.types import MarbleError

HARM = Estimate(-0.05, -0.06, -0.04)
WORSE = Evaluation({"ocr": RewardResult(96, 0.5, 0.45, HARM, base_std=0.3, win_rate=0.4)}, {}, HARM)
STRICT, LENIENT = RegistryConfig(margin=0.1), RegistryConfig(margin=0.5)


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    WORSE.save(tmp_path / "evaluation.json")
    write_decision(tmp_path, decide(WORSE, STRICT), STRICT)
    return tmp_path


def test_the_decision_that_evaluate_wrote_is_read_back_word_for_word(evaluated: Path) -> None:
    decision, evaluation, anew = read_decision(evaluated, STRICT)
    assert decision == decide(WORSE, STRICT) and decision.verdict == "worse" and evaluation == WORSE and anew == ""


def test_a_decision_is_not_made_twice_though_the_gate_would_answer_otherwise_now(evaluated: Path) -> None:
    write_decision(evaluated, Decision(True, "promoted", ("By hand.",)), STRICT)
    assert read_decision(evaluated, STRICT)[0].reasons == ("By hand.",)


def test_another_registry_section_or_another_evaluation_is_decided_anew_and_it_is_said(evaluated: Path) -> None:
    decision, _, anew = read_decision(evaluated, LENIENT)
    assert decision == decide(WORSE, LENIENT) and anew == "Decided anew: registry changed since evaluate decided."
    text = (evaluated / "evaluation.json").read_text()
    (evaluated / "evaluation.json").write_text(text + "\n")
    assert read_decision(evaluated, STRICT)[2] == "Decided anew: evaluation.json changed since evaluate decided."
    assert "evaluation.json and registry" in read_decision(evaluated, LENIENT)[2]
    (evaluated / "decision.json").unlink()
    assert read_decision(evaluated, STRICT)[2] == "Decided anew: there is no decision.json beside it."


def test_of_a_run_with_nothing_new_there_is_a_decision_and_no_evaluation(tmp_path: Path) -> None:
    write_decision(tmp_path, Decision(False, "nothing new", ("No prompt is new.",)), STRICT)
    decision, evaluation, anew = read_decision(tmp_path, STRICT)
    assert evaluation is None and anew == "" and decision.summary == "nothing to train on"


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"format": 1, "promote": true}', '{"format": 2}'])
def test_a_decision_that_was_spoiled_is_one_sentence(evaluated: Path, text: str) -> None:
    (evaluated / "decision.json").write_text(text)
    with pytest.raises(
        MarbleError, match=r"decision.json (is not what evaluate wrote; run the evaluate stage again|has version [02])"
    ):
        read_decision(evaluated, STRICT)
