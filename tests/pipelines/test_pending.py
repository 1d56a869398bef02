"""A pod that waits: Kubeflow calls its run RUNNING, and its node PENDING, for hours."""

from datetime import UTC, datetime, timedelta

from kfp_server_api import V2beta1PipelineTaskDetail, V2beta1Run, V2beta1RunDetails

from marble_kubeflow.pipelines.run_state import in_words, waits

BEGUN = datetime(2026, 11, 28, 18, 26, tzinfo=UTC)


def run(executor: str, state: str = "RUNNING") -> V2beta1Run:
    """In its train stage; the nodes are named as Kubeflow answers them."""
    nodes = {"root": "RUNNING", "prepare": "SUCCEEDED", "train-driver": "SUCCEEDED", "train": "RUNNING", "train(0)": "RUNNING"}
    nodes |= {"executor": "RUNNING", "executor(0)": executor}
    tasks = [V2beta1PipelineTaskDetail(display_name=name, state=its, start_time=BEGUN) for name, its in nodes.items()]
    return V2beta1Run(run_id="b1", display_name="one", state=state, run_details=V2beta1RunDetails(task_details=tasks))


def test_a_pod_that_has_waited_for_a_minute_is_one_sentence_with_the_command_that_says_why() -> None:
    said = waits(run("PENDING"), BEGUN + timedelta(seconds=61))
    assert said.startswith("The pod of train has waited since 18:26 UTC. ")
    assert "describe pods -l pipeline/runid=b1,marble/stage=train says" in said
    assert in_words(run("PENDING")).splitlines() == ["Run one is RUNNING in train", said]


def test_a_pod_that_runs_or_has_only_begun_to_wait_is_nothing_to_speak_of() -> None:
    late = BEGUN + timedelta(hours=1)
    assert waits(run("PENDING"), BEGUN + timedelta(seconds=59)) == waits(run("RUNNING"), late) == ""
    assert waits(run("PENDING", "FAILED"), late) == "" and waits(V2beta1Run(state="RUNNING"), late) == ""
