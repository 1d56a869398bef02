"""What MLflow, or what stands before it, refuses is said by prepare, before a GPU is asked for."""

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from marble_core import stages
from marble_core.config.loading import load_config, presets
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import read_prepared
from marble_core.estimate import sizes_of
from marble_core.preflight.answers import require
from marble_core.preflight.models import LARGEST, ask_mlflow
from marble_core.preflight.servers import ask_named
from marble_core.runtime.seeding import derive
from marble_core.storage.s3 import S3
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
    assert len(answers) == 11 and {each.state for each in answers} == {"yes", "note"}
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


def test_a_champion_whose_files_are_gone_is_refused_and_the_sentence_says_which_version_and_how_it_goes_on(
    config: RunConfig, tmp_path: Path
) -> None:
    client = MlflowClient()
    experiment = client.create_experiment(config.storage.experiment)
    run = client.create_run(experiment).info.run_id
    model = client.create_logged_model(experiment, "adapter", source_run_id=run)
    (tmp_path / "adapter_weights").mkdir()
    (tmp_path / "adapter_weights" / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    client.log_model_artifacts(model.model_id, str(tmp_path))
    client.finalize_logged_model(model.model_id, "READY")
    name = config.registry.model
    client.create_registered_model(name)
    version = client.create_model_version(name, f"models:/{model.model_id}", model_id=model.model_id).version
    client.set_registered_model_alias(name, "champion", version)
    assert ask_mlflow(config, 1000)[-1].state == "yes"
    artifacts = S3("mlflow")  # where the server of the tests keeps them
    (file,) = (key for key in artifacts.keys("artifacts") if model.model_id in key)
    artifacts.delete(file)
    answer = ask_mlflow(config, 1000)[-1]
    assert (answer.asked, answer.state) == ("MLflow: the champion's files", "no")
    assert f"The champion of {name}, version {version}, has no pytorch_lora_weights.safetensors" in answer.answer
    assert "marble rollback" in answer.answer


def test_what_was_asked_is_in_the_terminal_and_on_the_page_and_a_seed_above_2_to_the_53_arrives_whole(
    services: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARBLE_PROGRESS", str(tmp_path / "progress.jsonl"))
    seed = "9007199254740993"  # which no double is
    small = ["data.train_size=12", "data.evaluation_size=6", f"storage.experiment=e-{uuid.uuid4().hex[:8]}"]
    run_id = f"asked-{uuid.uuid4().hex[:6]}"
    stages.prepare("demo", small, run_id, tmp_path / "prepared", tmp_path / "data.html", {"seed": seed})
    notes = [json.loads(line).get("note", "") for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    page = (tmp_path / "data.html").read_text()
    for asked in ("S3: upload 8.4 MB in parts", "S3: replace it on a condition", f"MLflow: the run {run_id}"):
        assert f"<dt>{asked}" in page and any(note.startswith(asked) for note in notes)
    assert read_prepared(tmp_path / "prepared")[0].seed == int(seed)
    (run,) = MlflowClient().search_runs(
        [MlflowClient().get_experiment_by_name(small[-1].partition("=")[2]).experiment_id],  # type: ignore[union-attr]
        f"tags.`marble.run_id` = '{run_id}'",
    )
    assert run.data.params["seed"] == seed
    numbers = derive(int(seed), "a"), derive(int(seed) - 1, "a")
    assert numbers[0] != numbers[1]
