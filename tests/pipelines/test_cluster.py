"""Runs and schedules on a cluster: kfp's real client against a strict stub of its server, by the command line alone."""

import json
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from cluster_commands import TOKEN, Marble
from commands import one_sentence
from marble_core import __version__
from marble_kubeflow.pipelines.marble import PACKAGE
from stub_hub import serving
from stub_kfp import API, Refused, StubKfp, strict


def test_a_submitted_run_is_what_was_ordered_and_the_same_file_is_uploaded_once(
    server: StubKfp, marble: Marble, tmp_path: Path
) -> None:
    shutil.copyfile(PACKAGE, tmp_path / "mine.yaml")
    ordered = ("--preset", "demo", "--set", "train.steps=7", "--param", "seed=3", "--param", "gate_margin=0.2")
    marble("submit", "mine.yaml", "--run-id", "first", *ordered)
    said = marble("submit", "--json", "--run-id", "second").json  # the same pipeline in another file
    first, second = server.posted("runs")
    assert first["display_name"] == "first" and second["display_name"] == said["display_name"] == "second"
    parameters = {"preset": "demo", "config": '["train.steps=7"]', "seed": "3", "gate_margin": "0.2", "run_id": "first"}
    assert first["runtime_config"]["parameters"] == parameters
    assert first["pipeline_version_reference"] == second["pipeline_version_reference"]
    (version,) = server.tables["versions"].values()
    assert version["tags"] == {"marble.version": __version__, "marble.image": f"marble-train:{__version__}"}
    assert "pipeline_spec" not in said
    (version,) = server.tables["versions"].values()
    assert re.fullmatch(r"marble-[0-9a-f]{12}", version["display_name"])
    (uploaded,) = server.posted("pipelines/upload_version")
    assert uploaded["uploadfile"] == PACKAGE.read_bytes()
    (tmp_path / "mine.yaml").write_text(PACKAGE.read_text() + "# changed\n")
    marble("submit", "mine.yaml")
    assert len(server.tables["versions"]) == 2 and len(server.tables["pipelines"]) == len(server.tables["experiments"]) == 1


def test_a_run_of_that_name_that_has_not_ended_is_not_started_twice(server: StubKfp, marble: Marble) -> None:
    marble("submit", "--run-id", "one")
    one_sentence(marble("submit", "--run-id", "one", code=2).error, "one", "PENDING", "marble runs wait one")
    marble("runs", "cancel", "one")
    assert marble("runs", "wait", "one", "--every", "0.01", code=3)
    marble("submit", "--run-id", "one")
    assert len(server.posted("runs")) == 2


ANSWERS = json.loads(Path(__file__).with_name("kubeflow_answers.json").read_text())  # of a real one, cut to what is read


@pytest.mark.parametrize(
    ("states", "code", "said"),
    [(["RUNNING", "SUCCEEDED"], 0, "SUCCEEDED"), (["RUNNING", "FAILED"], 1, "FAILED"), (["CANCELING", "FAILED"], 3, "CANCELED"), (["RUNNING"], 4, "goes on")],
)  # fmt: skip
def test_the_exit_code_of_wait_says_how_a_run_ended(
    server: StubKfp, marble: Marble, states: list[str], code: int, said: str
) -> None:
    server.script["one"] = states
    begun = time.monotonic()
    done = marble("submit", "--run-id", "one", "--wait", "--every", "0.01", "--timeout", "0.5", code=code)
    assert said in done + done.error and time.monotonic() - begun < 20


def test_a_server_that_is_away_for_a_moment_does_not_end_the_waiting(server: StubKfp, marble: Marble) -> None:
    marble("submit", "--run-id", "one")
    server.script["one"] = ["RUNNING", "503", "SUCCEEDED"]
    assert "SUCCEEDED" in marble("runs", "wait", "one", "--every", "0.01")
    server.script["one"] = ["503"]
    one_sentence(marble("runs", "wait", "one", code=2).error, "(503)", "try again")  # at once, where it has never answered


def test_a_failed_run_names_the_stage_and_the_reason(server: StubKfp, marble: Marble) -> None:
    marble("submit", "--run-id", "one", "--param", "preset=demo")
    (run,) = server.tables["runs"].values()
    run |= ANSWERS["failed-run"]
    said = marble("runs", "show", "one")
    assert said.splitlines()[0] == "Run one is FAILED in prepare" and "preset=demo" in said
    run["error"] = {"message": "out of\nmemory"}
    assert "Run one is FAILED in prepare: out of memory" in marble("runs", "show", "one")
    assert marble("runs", "show", run["run_id"], "--json").json["state"] == "FAILED"
    assert [each["display_name"] for each in marble("runs", "list", "--json").json] == ["one"]
    assert "one" in marble("runs", "list")
    one_sentence(marble("runs", "cancel", "one", code=2).error, "one", "FAILED")
    one_sentence(marble("runs", "show", "two", code=2).error, "'two'", "marble runs list")


@pytest.mark.parametrize(
    ("answer", "said", "code"),
    [
        ("failed-run", "Run one is FAILED in prepare", 1),
        ("cancelled-run", "Run one is CANCELED", 3),
        ("promoted-run", "Run one is SUCCEEDED", 0),
        ("succeeded-run", "Run one is SUCCEEDED", 0),  # with a red task that is none of the pipeline's own
    ],
)
def test_what_kubeflow_answered_of_a_run_is_said_by_stages_and_how_it_really_ended(
    server: StubKfp, marble: Marble, answer: str, said: str, code: int
) -> None:
    marble("submit", "--run-id", "one")
    (run,) = server.tables["runs"].values()
    run |= ANSWERS[answer]
    assert marble("runs", "wait", "one", code=code).strip() == said
    run["run_details"] = None  # where Argo has compressed its nodes
    assert marble("runs", "show", "one").splitlines()[0] == said.partition(" in ")[0]


def test_while_a_run_goes_on_its_stage_is_named(server: StubKfp, marble: Marble) -> None:
    marble("submit", "--run-id", "one")
    (run,) = server.tables["runs"].values()
    names = [
        ("prepare(0)", "SUCCEEDED"),
        ("prepare", "SUCCEEDED"),
        ("train", "RUNNING"),
        ("train(1)", "RUNNING"),
        ("train(0)", "FAILED"),
    ]
    run |= {"state": "RUNNING", "run_details": {"task_details": [{"display_name": n, "state": s} for n, s in names]}}
    assert marble("runs", "show", "one").splitlines()[0] == "Run one is RUNNING in train"


def test_a_parameter_arrives_as_it_was_given(server: StubKfp, marble: Marble) -> None:
    """The kubelet reads $$ as $ and $(NAME) as a variable, and Argo resolves {{...}}: neither is the user's meaning."""
    marble("submit", "--run-id", "one", "--param", "base_model=/models/$(AWS_SECRET_ACCESS_KEY)a$$b")
    (sent,) = server.posted("runs")
    assert sent["runtime_config"]["parameters"]["base_model"] == "/models/$$(AWS_SECRET_ACCESS_KEY)a$$$$b"
    one_sentence(marble("submit", "--param", "base_model=/a{{workflow.name}}", code=2).error, "base_model", "{{", "Argo")
    marble("submit", "--run-id", "two", "--param", "base_model=/models/\U0001f5bc")
    large = "--param=config=" + '["registry.model=' + "x" * 120_000 + '"]'
    one_sentence(marble("submit", large, code=2).error, "120 kB", "files")


def test_a_dry_run_prints_the_order_and_asks_no_server(away_from_home: Path, marble: Marble) -> None:
    order = marble("submit", "--dry-run", "--run-id", "one", "--host", "http://me:hidden@kubeflow.example").json
    assert order["parameters"] == {"run_id": "one"} and order["pipeline_version"].startswith("marble-")
    assert order["host"] == "http://kubeflow.example"
    order = marble("schedule", "create", "nightly", "--cron", "*/30 * * * *", "--dry-run", "--paused").json
    assert order["cron"] == "0 */30 * * * *" and order["max_concurrency"] == 1 and order["enabled"] is False


def test_in_multi_user_mode_the_token_and_the_namespace_come_from_the_environment_or_a_file(
    away_from_home: Path, marble: Marble, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = StubKfp(TOKEN, "team")
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", stub.url)
    (away_from_home / "token").write_text(TOKEN + "\n")
    with serving(stub.server):
        one_sentence(marble("runs", "list", code=2).error, "does not know you (401)", "KF_PIPELINES_TOKEN", "--token-file")
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(away_from_home / "token"))  # as Kubeflow mounts it into pods
        one_sentence(marble("runs", "list", code=2).error, "namespace", "--namespace")
        marble("submit", "--namespace", "team")
        (pipeline,) = stub.tables["pipelines"].values()
        (experiment,) = stub.tables["experiments"].values()
        assert pipeline["namespace"] == experiment["namespace"] == "team"
        monkeypatch.setenv("KF_PIPELINES_NAMESPACE", "team")
        assert marble("runs", "list", "--json").json and marble("schedule", "list", "--json").json == []
        one_sentence(marble("runs", "list", "--namespace", "theirs", code=2).error, "(403)", "theirs", "kubeflow-edit")
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(away_from_home / "none"))
        one_sentence(marble("runs", "list", code=2).error, "token file", "none")
        monkeypatch.setenv("KF_PIPELINES_TOKEN", TOKEN)
        marble("runs", "list")
    assert not (away_from_home / "home").exists()  # kfp would leave its context there


@pytest.mark.parametrize("status", [400, 403, 404, 409, 503])
def test_a_refusal_of_the_server_is_one_sentence_without_the_token(
    server: StubKfp, marble: Marble, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("KF_PIPELINES_TOKEN", TOKEN)
    server.refusals = [(r"POST .*/runs$", status, f"no:\n what Bearer {TOKEN} wants")]
    one_sentence(marble("submit", code=2).error, server.url, f"({status})", "no: what Bearer ... wants")


@pytest.mark.parametrize("what", ["runs", "experiments"])
def test_what_kubeflow_does_not_let_a_run_do_is_said_before_anything_is_sent(
    server: StubKfp, marble: Marble, what: str
) -> None:
    server.refusals = [(rf"GET .*/{what}$", 403, f"User 'me' may not list {what}")]
    one_sentence(marble("submit", code=2).error, "(403)", what, "kubeflow-edit")
    assert [method for method, _, _ in server.calls if method == "POST"] == []


def test_what_somebody_else_has_made_meanwhile_is_used(
    server: StubKfp, marble: Marble, monkeypatch: pytest.MonkeyPatch
) -> None:
    marble("submit", "--run-id", "one")
    listed = StubKfp._route
    hidden = {"/pipelines", f"/pipelines/{next(iter(server.tables['pipelines']))}/versions"}

    def late(stub: StubKfp, method: str, path: str, *rest: Any) -> dict[str, Any]:
        if method == "GET" and path in hidden:
            hidden.remove(path)
            return {}
        return listed(stub, method, path, *rest)

    monkeypatch.setattr(StubKfp, "_route", late)
    marble("submit", "--run-id", "two")
    assert not hidden and len(server.tables["versions"]) == len(server.tables["pipelines"]) == 1


def test_a_server_that_cannot_be_asked_is_one_sentence_within_seconds(server: StubKfp, marble: Marble, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    (tmp_path / "ca.pem").write_text("no certificates")
    cases: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        (("--host", nobody), ("nobody listens", nobody)),
        (("--host", "http://kubeflow.invalid"), ("name is unknown", "kubeflow.invalid")),
        (("--host", server.url.replace("http", "https")), ("TLS", "--ca")),
        (("--host", f"{server.url}/elsewhere"), ("(404)", "path")),
        (("--host", "http://"), ("http://localhost:8888",)),
        (("--host", "http://x:99999"), ("http://localhost:8888",)),
        (("--host", "ftp://x"), ("http://localhost:8888",)),
        (("--ca", "none.pem"), ("none.pem", "certificates")),
        (("--host", ""), ("--host", "KF_PIPELINES_ENDPOINT")),
    ]
    for options, parts in cases:
        begun = time.monotonic()
        one_sentence(marble("runs", "list", *options, code=2).error, *parts)
        assert time.monotonic() - begun < 20, options  # an answer may take 30
    server.hanging.clear()
    one_sentence(
        marble("runs", "list", "--request-timeout", "0.2", code=2).error, "no answer within 0.2 s", "--request-timeout"
    )
    server.hanging.set()


def test_a_login_page_is_not_taken_for_an_empty_answer(
    server: StubKfp, marble: Marble, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = "<!doctype html><title>Sign in</title>"
    monkeypatch.setattr(StubKfp, "_answer", lambda stub, request: (request.send_response(200), request.end_headers(), request.wfile.write(page.encode())))  # fmt: skip
    one_sentence(marble("runs", "list", code=2).error, "page", "KF_PIPELINES_TOKEN")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("submit", "--param", "presets=demo"), ("'presets'", "did you mean 'preset'")),
        (("submit", "--param", "preset"), ("'preset'", "NAME=VALUE")),
        (("submit", "--param", "config=[]", "--set", "train.steps=7"), ("'config'", "twice")),
        (("submit", "--set", "train.stpes=7"), ("train.stpes", "'steps'")),
        (("submit", "--param", "method=marbel"), ("marbel", "did you mean 'marble'?")),
        (("submit", "--param", "gpus=all"), ("'all'", "gpus")),
        (("submit", "--run-id", "../x"), ("'../x'", "letters")),
        (("submit", "none.yaml"), ("none.yaml", "No such file")),
        (("submit", "other.yaml"), ("other.yaml", "marble compile")),
        (("schedule", "create", "n", "--cron", "0 3 * *"), ("'0 3 * *'", "five fields")),
        (("schedule", "create", "n", "--cron", "0 3 * * *", "--param", "run_id=x"), ("run_id",)),
        (("schedule", "update", "n", "--param", "run_id=x"), ("run_id",)),
        (("submit", "--param", "accelerator=NVIDIA H100"), ("parameter accelerator", "'NVIDIA H100'", "nvidia.com/gpu")),
        (("submit", "--param", "accelerator="), ("parameter accelerator", "''")),
        (("submit", "--param", "evaluation_gpus=one"), ("parameter evaluation_gpus", "'one'")),
        (("submit", "--service-account", "My_Account"), ("--service-account", "'My_Account'")),
        (("submit", "--namespace", "team.a"), ("--namespace", "'team.a'")),
        (("submit", "--experiment", "x" * 129), ("--experiment", "128")),
    ],
)
def test_what_is_wrong_with_an_order_is_one_sentence_before_a_server_is_asked(
    server: StubKfp, marble: Marble, tmp_path: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    (tmp_path / "other.yaml").write_text("kind: Deployment\n")
    one_sentence(marble(*arguments, code=2).error, *parts)
    assert server.calls == []


def test_a_parameter_gets_the_type_that_the_pipeline_file_gives_it(server: StubKfp, marble: Marble, tmp_path: Path) -> None:
    from kfp import compiler, dsl

    @dsl.component(base_image="python:3.11")
    def stage(steps: int) -> int:
        return steps

    @dsl.pipeline(name="typed")
    def typed(steps: int, margin: float = 0.1, exact: bool = False, names: list = [], tree: dict = {}) -> None:  # noqa: B006
        stage(steps=steps)

    compiler.Compiler().compile(typed, str(tmp_path / "typed.yaml"))
    given = ("steps=7", "margin=0.5", "exact=true", 'names=["a"]', 'tree={"a": 1}')
    marble("submit", "typed.yaml", *(part for item in given for part in ("--param", item)))
    (sent,) = server.posted("runs")
    parameters = {"steps": 7, "margin": 0.5, "exact": True, "names": ["a"], "tree": {"a": 1}}
    assert sent["runtime_config"]["parameters"] == parameters and sent["runtime_config"]["parameters"]["exact"] is True
    one_sentence(marble("submit", "typed.yaml", code=2).error, "'steps'", "no default")
    one_sentence(marble("submit", "typed.yaml", "--param", "steps=many", code=2).error, "'steps'", "whole number", "'many'")
    one_sentence(marble("submit", "typed.yaml", "--param", "exact=maybe", code=2).error, "'exact'", "true or false")


def test_the_stub_refuses_what_the_real_server_refuses() -> None:
    with pytest.raises(Refused, match="unknown field concurrency"):
        strict({"display_name": "x", "concurrency": 1}, "V2beta1RecurringRun")
    with pytest.raises(Refused, match="unknown field kron"):
        strict({"trigger": {"cron_schedule": {"kron": "* * * * * *"}}}, "V2beta1RecurringRun")
    assert API == "/apis/v2beta1"
