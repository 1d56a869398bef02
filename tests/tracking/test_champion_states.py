"""A champion never was, is, or was and is gone; a person's roll-back stays; of two registrations at one time both say so."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from marble_core.config.loading import load_config
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.evaluation.gate import Decision
from marble_core.evaluation.results import Estimate, Evaluation, RewardResult
from marble_core.storage.s3 import S3
from marble_core.tracking.champion import CHAMPION_OF_TAG, PREVIOUS_TAG
from marble_core.tracking.registry import MODEL_URI_TAG, fetch_champion, register_version, roll_back
from marble_core.training.retraining import find_champion, plan_retraining
from marble_core.types import MarbleError

PROMOTED = Decision(True, "promoted", ("The mean gain is +0.2.",))
FOUND = Evaluation(
    {"clipscore": RewardResult(96, 0.5, 0.7, Estimate(0.2, 0.1, 0.3), base_std=0.4, win_rate=0.5)},
    {},
    Estimate(0.2, 0.1, 0.3),
    settings={"solver": "euler", "steps": 12, "noise_seed": 4242},
)


@pytest.fixture
def config(services: dict[str, str]) -> RunConfig:
    return load_config("demo", overrides=[f"registry.model=o'brien {uuid.uuid4().hex[:8]}", "train.start_from=champion"])


@pytest.fixture
def a_run(config: RunConfig, tmp_path: Path) -> Callable[[], str]:
    """Makes a run that has logged a LoRA, of which nothing here reads a weight."""

    def make() -> str:
        client = MlflowClient()
        experiment = client.get_experiment_by_name("champions")
        where = experiment.experiment_id if experiment else client.create_experiment("champions")
        run = client.create_run(where, run_name=f"run-{uuid.uuid4().hex[:6]}").info.run_id
        model = client.create_logged_model(where, "adapter", source_run_id=run)
        (tmp_path / run / "adapter_weights").mkdir(parents=True)
        (tmp_path / run / "adapter_weights" / ADAPTER_FILE).write_bytes(run.encode())
        client.log_model_artifacts(model.model_id, str(tmp_path / run))
        client.finalize_logged_model(model.model_id, "READY")
        client.set_tag(run, MODEL_URI_TAG, f"models:/{model.model_id}")
        return run

    return make


def register(config: RunConfig, run: str, seen: str | None = None) -> tuple[str, str]:
    return register_version(config, replace(FOUND, champion_version=seen), PROMOTED, Path("no images"), run, cards={})


def a_lora(directory: Path) -> Path:
    directory.mkdir()
    (directory / ADAPTER_FILE).write_bytes(b"another")
    return directory


def test_a_model_that_never_had_a_champion_begins_from_the_base_and_that_is_said(config: RunConfig, bucket: S3) -> None:
    settled, source = plan_retraining(config, bucket, "run-1")
    assert settled.train.start_from is None
    _, said = source.prompts([], [])
    assert said == [f"The registered model {config.registry.model} has never had a champion: training begins from the base."]


@pytest.mark.parametrize("how", ["alias", "version", "model", "name"])
def test_a_champion_that_was_lost_stops_what_would_begin_from_it_and_is_told_to_who_compares(
    config: RunConfig, a_run: Callable[[], str], tmp_path: Path, how: str
) -> None:
    client, name = MlflowClient(), config.registry.model
    version, alias = register(config, a_run())
    assert alias == "champion" and fetch_champion(config, a_lora(tmp_path / "a"), tmp_path).version == version
    if how == "alias":
        client.delete_registered_model_alias(name, "champion")
    elif how == "version":
        client.delete_model_version(name, version)
    elif how == "model":
        client.delete_registered_model(name)
    else:
        client.rename_registered_model(name, f"{name} of another team")
    with pytest.raises(MarbleError, match=r"has no champion any more, though .*'champion'.* registry\.model\.$"):
        find_champion(name)
    assert "has no champion any more" in fetch_champion(config, a_lora(tmp_path / "b"), tmp_path).absent


def test_a_persons_roll_back_stays_when_the_registration_is_repeated(config: RunConfig, a_run: Callable[[], str]) -> None:
    first, _ = register(config, a_run())
    run = a_run()
    second, _ = register(config, run, first)
    assert roll_back(config.registry.model) == (second, first)
    assert register(config, run, first) == (second, "challenger")
    aliases = MlflowClient().get_registered_model(config.registry.model).aliases
    assert {name: str(v) for name, v in aliases.items()} == {"champion": first, "challenger": second}
    assert "it was rolled back" in MlflowClient().get_model_version(config.registry.model, second).description
    roll_back(config.registry.model, second)
    assert register(config, run, first) == (second, "champion"), "a person has made it champion again"


@pytest.mark.parametrize("when", ["before the move", "after the move"])
def test_two_registrations_at_one_time_say_so_and_no_version_is_skipped_by_a_roll_back(
    config: RunConfig, a_run: Callable[[], str], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    first, _ = register(config, a_run())
    mine, theirs = a_run(), a_run()
    move, others = MlflowClient.set_registered_model_alias, []

    def meanwhile(client: MlflowClient, name: str, alias: str, version: str) -> None:
        if alias == "champion" and not others:
            others.append("")
            if when == "before the move":
                others.append(register(config, theirs, first)[0])
            move(client, name, alias, version)
            if when == "after the move":  # the other had looked before
                other = str(client.create_model_version(name, f"runs:/{theirs}/adapter", theirs).version)
                client.set_model_version_tag(name, other, PREVIOUS_TAG, first)
                move(client, name, alias, other)
                others.append(other)
        else:
            move(client, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", meanwhile)
    version, alias = register(config, mine, first)
    client, name = MlflowClient(), config.registry.model
    other = others[1]
    champion = str(client.get_model_version_by_alias(name, "champion").version)
    assert (champion, alias) == ((version, "champion") if when == "before the move" else (other, "challenger"))
    assert "at the same time" in client.get_model_version(name, version).description
    loser = other if champion == version else version
    assert client.get_model_version(name, champion).tags[PREVIOUS_TAG] == loser
    assert "champion" not in client.get_model_version(name, loser).aliases


def test_a_description_fits_into_postgres(config: RunConfig, a_run: Callable[[], str]) -> None:
    many = {f"reward_{n:03d}": FOUND.rewards["clipscore"] for n in range(120)}
    version, _ = register_version(config, replace(FOUND, rewards=many), PROMOTED, Path("none"), run := a_run(), cards={})
    client = MlflowClient()
    assert len(client.get_model_version(config.registry.model, version).description) <= 5000
    assert client.get_run(run).data.tags[CHAMPION_OF_TAG] == config.registry.model
