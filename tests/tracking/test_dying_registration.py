"""MLflow dies at a call of a registration, before or after it has done what it was asked: the same registration, repeated, is whole."""

import functools
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from marble_core.config.loading import load_config
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.evaluation.gate import Decision
from marble_core.evaluation.results import Estimate, Evaluation, RewardResult
from marble_core.tracking.registry import MODEL_URI_TAG, register_version
from marble_core.types import MarbleError

PROMOTED = Decision(True, "promoted", ("The mean gain is +0.2.",))
FOUND = Evaluation(
    {"clipscore": RewardResult(96, 0.5, 0.7, Estimate(0.2, 0.1, 0.3), base_std=0.4, win_rate=0.5)},
    {},
    Estimate(0.2, 0.1, 0.3),
    settings={"solver": "euler", "steps": 12, "noise_seed": 4242},
)
CALLS = [name for name in dir(MlflowClient) if not name.startswith("_") and callable(getattr(MlflowClient, name))]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that has logged a LoRA, in an MLflow on sqlite."""
    import mlflow

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    client = MlflowClient()
    where = client.create_experiment("dying", artifact_location=f"file://{tmp_path}/artifacts")
    run = client.create_run(where).info.run_id
    model = client.create_logged_model(where, "adapter", source_run_id=run)
    (tmp_path / "lora" / "adapter_weights").mkdir(parents=True)
    (tmp_path / "lora" / "adapter_weights" / ADAPTER_FILE).write_bytes(b"weights")
    client.log_model_artifacts(model.model_id, str(tmp_path / "lora"))
    client.finalize_logged_model(model.model_id, "READY")
    client.set_tag(run, MODEL_URI_TAG, f"models:/{model.model_id}")
    yield run
    mlflow.set_tracking_uri(before)


class Dying:
    """From now on the client's call number ``at`` raises, before or after it is done; without ``at`` they are counted."""

    def __init__(self, monkeypatch, at=0, after=False):
        self.seen = 0
        for name in CALLS:
            monkeypatch.setattr(MlflowClient, name, self._wrapped(getattr(MlflowClient, name), at, after))

    def _wrapped(self, call, at, after):
        @functools.wraps(call)
        def wrapper(*args, **kwargs):
            self.seen += 1
            dies = self.seen == at
            if dies and not after:
                raise MlflowException("API request failed: connection refused")
            answer = call(*args, **kwargs)
            if dies:
                raise MlflowException("API request failed: connection reset")
            return answer

        return wrapper


def registered(run, model):
    config = load_config("demo", overrides=[f"registry.model={model}"])
    return register_version(config, FOUND, PROMOTED, Path("no images"), run, cards={})


def state(model):
    """All that a registration leaves of the model."""
    client = MlflowClient()
    versions = [
        (v.version, v.description.replace(model, "MODEL"), {k: t.replace(model, "MODEL") for k, t in v.tags.items()}, v.aliases)
        for v in client.search_model_versions(f"name = '{model}'")
    ]
    for *_, tags, _ in versions:
        tags.pop("marble.config_digest")
    return versions, dict(client.get_registered_model(model).aliases)


def died_at(run, monkeypatch, numbers):
    """Whether the registration that MLflow died in, and then the repeated one, leave the same as one without an accident."""
    assert registered(run, "whole") == ("1", "champion")
    whole, died = state("whole"), 0
    for at in numbers:
        for after in (False, True):
            model = f"model-{at}-{after}"
            with monkeypatch.context() as patch:
                Dying(patch, at, after)
                try:
                    registered(run, model)
                except (MarbleError, MlflowException):
                    died += 1
            assert registered(run, model) == ("1", "champion")
            assert state(model) == whole, (at, after)
    assert died > len(numbers), "of some calls the registration needs no answer"


def count(run, monkeypatch):
    with monkeypatch.context() as patch:
        counted = Dying(patch)
        registered(run, "counted")
    return counted.seen


def test_at_some_calls(run, monkeypatch):
    number = count(run, monkeypatch)
    assert number > 20
    died_at(run, monkeypatch, [1, number // 3, number // 2, number])


@pytest.mark.deep  # twice at each of some thirty calls: a minute or two
def test_at_every_call(run, monkeypatch):
    died_at(run, monkeypatch, range(1, count(run, monkeypatch) + 1))
