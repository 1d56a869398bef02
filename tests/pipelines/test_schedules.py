"""Schedules on a cluster, by the command line alone."""

from pathlib import Path

import pytest

from cluster_commands import Marble
from commands import one_sentence
from marble_kubeflow.pipelines.cron import six_fields
from marble_kubeflow.pipelines.marble import PACKAGE
from stub_kfp import StubKfp


def test_a_schedule_is_made_paused_resumed_changed_and_deleted(server: StubKfp, marble: Marble, tmp_path: Path) -> None:
    marble("schedule", "create", "nightly", "--cron", "0 3 * * *", "--set", "train.steps=7", "--service-account", "trainer")
    (sent,) = server.posted("recurringruns")
    assert sent["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}} and sent["mode"] == "ENABLE"
    assert sent["max_concurrency"] == 1 and sent["no_catchup"] is True and sent["service_account"] == "trainer"
    assert sent["runtime_config"]["parameters"] == {"config": '["train.steps=7"]'}
    assert "was there already" in marble("schedule", "create", "nightly", "--cron", "0 3 * * *", "--set", "train.steps=7")
    other = marble("schedule", "create", "nightly", "--cron", "0 4 * * *", code=2)
    one_sentence(other.error, "'nightly'", "marble schedule update nightly")
    assert len(server.posted("recurringruns")) == 1

    marble("schedule", "pause", "nightly")
    assert [each["status"] for each in marble("schedule", "list", "--json").json] == ["DISABLED"]
    assert "paused" in marble("schedule", "list")
    marble("schedule", "update", "nightly", "--cron", "0 5 * * 1-5", "--param", "steps=80")
    ((_, changed),) = server.tables["recurring"].items()
    assert changed["trigger"]["cron_schedule"]["cron"] == "0 0 5 * * 1-5" and changed["status"] == "DISABLED"
    assert changed["runtime_config"]["parameters"] == {"config": '["train.steps=7"]', "steps": "80"}
    assert changed["service_account"] == "trainer" and changed["max_concurrency"] == 1
    assert changed["pipeline_version_reference"] == sent["pipeline_version_reference"]

    (tmp_path / "next.yaml").write_text(PACKAGE.read_text() + "# the next release\n")
    marble("schedule", "update", "nightly", "--package", "next.yaml")
    marble("schedule", "resume", "nightly")
    ((_, changed),) = server.tables["recurring"].items()
    assert changed["pipeline_version_reference"] != sent["pipeline_version_reference"] and changed["status"] == "ENABLED"
    assert changed["trigger"]["cron_schedule"]["cron"] == "0 0 5 * * 1-5"

    assert "(0 0 5 * * 1-5) would be deleted; nothing was" in marble("schedule", "delete", "nightly", "--dry-run")
    assert len(server.tables["recurring"]) == 1
    marble("schedule", "delete", "nightly")
    assert server.tables["recurring"] == {} and marble("schedule", "list", "--json").json == []
    for command in ("pause", "resume", "update", "delete"):
        one_sentence(marble("schedule", command, "nightly", code=2).error, "'nightly'", "marble schedule list")


def test_a_run_in_progress_outlives_its_schedule_and_one_without_parameters_can_be_changed(
    server: StubKfp, marble: Marble
) -> None:
    marble("schedule", "create", "nightly", "--cron", "0 3 * * *")
    ((schedule, sent),) = server.tables["recurring"].items()
    assert "runtime_config" not in sent, "as Kubeflow answers"
    begun = {"run_id": "x", "display_name": "x", "state": "RUNNING", "created_at": "2026-01-01T00:00:00+00:00"}
    server.tables["runs"]["x"] = {**begun, "recurring_run_id": schedule}
    assert "was there already" in marble("schedule", "create", "nightly", "--cron", "0 3 * * *")
    marble("schedule", "update", "nightly", "--cron", "0 5 * * *")
    marble("schedule", "delete", "nightly")
    assert server.killed == [] and server.tables["recurring"] == {}


def test_a_schedule_is_replaced_by_what_is_declared_and_stays_paused(server: StubKfp, marble: Marble) -> None:
    """What the chart's hook does with each upgrade."""
    order = ("schedule", "create", "--replace", "--cron", "0 3 * * *", "--param", "steps=80", "--", "nightly")
    assert "there already" not in marble(*order) and "there already" in marble(*order)
    marble("schedule", "pause", "nightly")
    marble("schedule", "create", "--replace", "--cron", "0 5 * * *", "--", "nightly")
    ((_, kept),) = server.tables["recurring"].items()
    assert kept["trigger"]["cron_schedule"]["cron"] == "0 0 5 * * *" and kept["status"] == "DISABLED"
    assert "runtime_config" not in kept and len(server.posted("recurringruns")) == 2 and server.killed == []


def test_a_schedule_whose_version_is_gone_says_what_to_give(server: StubKfp, marble: Marble) -> None:
    marble("schedule", "create", "nightly", "--cron", "0 3 * * *")
    server.tables["versions"].clear()
    one_sentence(
        marble("schedule", "update", "nightly", "--cron", "0 5 * * *", code=2).error, "'nightly'", "deleted", "--package"
    )


def test_a_schedule_whose_change_fails_is_still_there(server: StubKfp, marble: Marble) -> None:
    marble("schedule", "create", "nightly", "--cron", "0 3 * * *")
    server.refusals = [(r"POST .*/recurringruns$", 503, "try later")]
    marble("schedule", "update", "nightly", "--cron", "0 5 * * *", code=2)
    ((_, kept),) = server.tables["recurring"].items()
    assert kept["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *" and kept["status"] == "ENABLED"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("0 3 * * *", "0 0 3 * * *"),
        ("*/15 8-18 1,15 JAN-mar mon", "0 */15 8-18 1,15 JAN-mar mon"),
        ("30 0 3 ? * 0", "30 0 3 ? * 0"),
    ],
)
def test_five_fields_get_the_seconds_that_kubeflow_wants(given: str, taken: str) -> None:
    assert six_fields(given) == taken


@pytest.mark.parametrize("wrong", ["60 3 * * *", "0 24 * * *", "0 3 0 * *", "0 3 * 13 *", "0 3 * * 7", "0 3 5-1 * *", "*/0 * * * *", "*-5 * * * *", "0 3 * * MOON", "@daily", "0,,1 * * * *", "٣ * * * *"])  # fmt: skip
def test_a_cron_expression_that_would_never_start_a_run_is_refused(wrong: str) -> None:
    from marble_core.types import MarbleError

    with pytest.raises(MarbleError, match="cron expression"):
        six_fields(wrong)
