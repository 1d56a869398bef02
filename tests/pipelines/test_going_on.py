"""What a run on a cluster can be gone on with, what a refusal looks like to a script, and which option a mistaken --param meant."""

from __future__ import annotations

import shlex

import pytest
from mlflow import MlflowClient

from cluster_commands import Marble
from commands import one_sentence
from marble_core.cli.options import REFUSED
from marble_core.tracking.kubeflow_page import RUN_TAG
from stub_kfp import StubKfp


def test_a_run_that_is_cancelled_or_failed_says_the_whole_command_that_goes_on_with_it(server: StubKfp, marble: Marble) -> None:
    given = ("--preset", "demo", "--set", "train.steps=7", "--param", "seed=3")
    marble("submit", "--run-id", "mine", *given)
    said = marble("runs", "cancel", "mine")
    marble("runs", "wait", "mine", "--every", "0.01s", code=3)
    assert said.splitlines()[-1].endswith(marble("runs", "show", "mine").splitlines()[-1].removeprefix("Go on: "))
    _, _, command = said.partition("Go on: marble ")
    marble(*shlex.split(command))
    first, again = (posted["runtime_config"]["parameters"] for posted in server.posted("runs"))
    assert again == first and again["config"] == '["train.steps=7"]'


@pytest.mark.parametrize(
    ("decision", "code"), [("refused: worse", REFUSED), ("promoted", 0), ("rehearsed", 0), ("nothing to train on", 0)]
)
def test_a_run_whose_model_the_gate_refused_ends_the_waiting_with_an_exit_code_of_its_own(
    server: StubKfp, marble: Marble, services: dict[str, str], decision: str, code: int
) -> None:
    marble("submit", "--run-id", "judged")
    (run,) = server.tables["runs"].values()
    run["state"] = "SUCCEEDED"
    client = MlflowClient(services["MLFLOW_TRACKING_URI"])
    client.create_run("0", tags={RUN_TAG: run["run_id"], "marble.decision": decision})
    said = marble("runs", "wait", "judged", "--every", "0.01", code=code)
    assert ("The gate refused the model of judged: worse." in said.error) is (code == REFUSED)


@pytest.mark.parametrize(
    ("param", "says"),
    [
        ("train.steps=3", "did you mean 'steps'?"),
        ("train.checkpoint_every=3", "--set train.checkpoint_every=3"),
        ("lr=3", "--set optimizer.lr=3"),
        ("stepz=3", "did you mean 'steps'?"),
    ],
)
def test_a_setting_given_as_a_parameter_is_named_where_it_belongs(marble: Marble, param: str, says: str) -> None:
    one_sentence(marble("submit", "--dry-run", "--param", param, code=2).error, repr(param.partition("=")[0]), says)
