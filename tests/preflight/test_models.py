"""What MLflow, or what stands before it, refuses is said by prepare, before a GPU is asked for."""

import time
import uuid
from collections.abc import Callable

import mlflow
import pytest
from mlflow import MlflowClient

from marble_core.config.loading import load_config, presets
from marble_core.config.schema import RunConfig
from marble_core.estimate import sizes_of
from marble_core.preflight.answers import require
from marble_core.preflight.models import LARGEST, ask_mlflow
from marble_core.preflight.servers import ask_named
from marble_core.types import MarbleError
from peculiar_s3 import Answer, Request, before

SIZE = 2_500_000


@pytest.fixture
def config(services: dict[str, str]) -> RunConfig:
    name = uuid.uuid4().hex[:8]
    return load_config("demo", overrides=[f"registry.model=m-{name}", f"storage.experiment=e-{name}"])


def text(status: int, said: str) -> Answer:
    return Answer(status, {"content-type": "text/html"}, f"<html>{said}</html>".encode())


def small_bodies(request: Request) -> Request | Answer:
    return text(413, "Request Entity Too Large") if len(request.body) > 1_000_000 else request


def artifacts_forbidden(request: Request) -> Request | Answer:
    return text(403, "Forbidden") if "mlflow-artifacts" in request.path and request.method == "PUT" else request


def artifacts_broken(request: Request) -> Request | Answer:
    return text(500, "Internal Server Error") if "mlflow-artifacts" in request.path and request.method == "PUT" else request


def no_logged_models(request: Request) -> Request | Answer:
    return text(404, "Not Found") if "/logged-models" in request.path else request


def read_only_registry(request: Request) -> Request | Answer:
    said = b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'
    refused = "/registered-models/" in request.path and request.method == "POST"
    return Answer(403, {"content-type": "application/json"}, said) if refused else request


@pytest.mark.parametrize(
    ("peculiarity", "sentence"),
    [
        (small_bodies, r"refused: .*413.*proxy-body-size"),
        (artifacts_forbidden, r"refused: .*403.*permission EDIT"),
        (artifacts_broken, r"refused: .*500.* the server"),
        (no_logged_models, r"knows no logged models.*must be MLflow 3 or newer"),
        (read_only_registry, r"Permission denied.*permission EDIT"),
    ],
)
def test_what_would_fail_after_the_training_is_one_sentence_before_it(
    config: RunConfig,
    services: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    peculiarity: Callable[[Request], Request | Answer],
    sentence: str,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with before(services["MLFLOW_TRACKING_URI"], peculiarity) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        mlflow.set_tracking_uri(url)
        with pytest.raises(MarbleError, match=sentence) as error:
            require(ask_mlflow(config, SIZE))
    assert "\n" not in str(error.value)


def test_all_questions_are_answered_in_seconds_and_one_model_is_used_again(config: RunConfig, services: dict[str, str]) -> None:
    began = time.monotonic()
    answers = ask_named(config)
    assert time.monotonic() - began < 10
    assert len(answers) == 10 and {each.state for each in answers} == {"yes", "note"}
    assert answers[-1].answer == "there never was one: the base is what counts"
    assert [each.state for each in ask_named(config)] == [each.state for each in answers]
    client = MlflowClient()
    experiment = client.get_experiment_by_name(config.storage.experiment)
    assert experiment and len(client.search_logged_models([experiment.experiment_id])) == 1
    assert client.search_registered_models(f"name LIKE '{config.registry.model}%'") == [], "no empty model stays"


def test_a_run_never_was_or_goes_on_or_was_deleted(config: RunConfig) -> None:
    def said() -> str:
        return {each.asked: each.answer for each in ask_mlflow(config, 1000, "monday")}["MLflow: the run monday"]

    client = MlflowClient()
    assert said() == "yes"
    experiment = client.get_experiment_by_name(config.storage.experiment)
    assert experiment
    made = client.create_run(experiment.experiment_id, tags={"marble.run_id": "monday"}).info.run_id
    assert said() == "it is there and goes on"
    client.delete_run(made)
    assert said().startswith("it was deleted: a new one is made") and said().endswith(f"--run-id {made})")


def test_a_deleted_experiment_says_how_it_comes_back(config: RunConfig) -> None:
    client = MlflowClient()
    made = client.create_experiment(config.storage.experiment)
    client.delete_experiment(made)
    with pytest.raises(MarbleError, match=rf"was deleted in MLflow: restore it \(mlflow experiments restore -x {made}\)"):
        require(ask_mlflow(config, 1000))


@pytest.mark.parametrize("preset", presets())
def test_the_model_that_is_logged_beforehand_is_as_large_as_the_adapter_will_be(preset: str) -> None:
    config = load_config(preset)
    sizes = sizes_of(config.model)
    assert sizes and 4 * sizes.lora(config.lora.rank) <= LARGEST
