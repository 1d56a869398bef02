"""MLflow's model registry: the LoRA that train logs, the version made of it, the aliases, and the way back. No torch at import.

The train stage hands its LoRA to log_adapter, the one function that needs diffusers; everything else is done with what it
logged. Aliases: ``champion`` is the version in use, ``challenger`` the newest one that was registered and not promoted.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_core.config.schema import CHAMPION, RunConfig
from marble_core.config.stage_files import ADAPTER_DIRECTORY, ADAPTER_FILE
from marble_core.evaluation.gate import Decision
from marble_core.evaluation.results import Evaluation, Incumbent
from marble_core.runtime.scratch import scratch_directory
from marble_core.storage.lora_place import fetch_lora, lora_file
from marble_core.tracking import metric_glossary
from marble_core.tracking.champion import (
    CHAMPION_OF_TAG,
    PREVIOUS_TAG,
    ROLLED_BACK_TAG,
    holder,
    loss,
    lost,
    move,
    named,
    quoted,
)
from marble_core.tracking.connection import mlflow_client
from marble_core.tracking.kubeflow_page import described
from marble_core.tracking.model_card import describe, write_card
from marble_core.types import Cards, MarbleError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER = "challenger"
MODEL_URI_TAG = "marble.model_uri"  # on the MLflow run: what log_adapter logged
SHA256_TAG = "marble.adapter_sha256"  # on the run, of that LoRA's file
BASE_TAG, REVISION_TAG = "marble.base_model", "marble.base_revision"  # on a version
ABOUT = (
    "LoRAs that MARBLE trained on several rewards at once. The alias champion is the version in use, challenger the newest one that "
    "was not promoted. Each version's description begins with the gate's decision and the table of rewards behind it."
)
WAIT_S = 120
DESCRIPTION = 5000  # characters: Postgres refuses longer ones, SQLite takes them
NEEDED_TO_LOAD = ("diffusers", "peft", "safetensors", "torch", "transformers")


def log_adapter(adapter: Path, base_model: str, run_id: str, step: int, metadata: Mapping[str, Any] | None = None) -> str:
    """Log the LoRA in MLflow run ``run_id`` with MLflow's diffusers flavour, and return its uri (``models:/m-...``).

    ``base_model`` is a hub id or an absolute path: what load_pipeline() puts the LoRA on. Needs diffusers and peft, so torch.
    The run keeps the uri in the tag marble.model_uri; the same LoRA logged again for the same run is the same model.
    Raises MarbleError if ``adapter`` holds no LoRA or MLflow fails.
    """
    weights = Path(adapter) / ADAPTER_FILE
    if not weights.is_file():
        raise MarbleError(f"The adapter directory {adapter} holds no {ADAPTER_FILE}; give the directory that train wrote.")
    with mlflow_client() as client:
        import mlflow.diffusers

        run, sha256 = client.get_run(run_id), _sha256(weights)
        if MODEL_URI_TAG in run.data.tags and run.data.tags.get(SHA256_TAG) == sha256:
            return str(run.data.tags[MODEL_URI_TAG])
        # Left to itself log_model makes the model in the default experiment, whose artifacts may lie elsewhere.
        model = client.create_logged_model(run.info.experiment_id, "adapter", source_run_id=run_id, params=run.data.params)
        mlflow.diffusers.log_model(
            adapter_path=str(weights),
            base_model=base_model,
            model_id=model.model_id,
            run_id=run_id,
            step=step,
            metadata=dict(metadata or {}),
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                *(f"{p}=={version(p).partition('+')[0]}" for p in NEEDED_TO_LOAD),
            ],
        )
        uri = f"models:/{model.model_id}"
        client.set_tag(run_id, SHA256_TAG, sha256)
        client.set_tag(run_id, MODEL_URI_TAG, uri)
    return uri


def fetch_champion(config: RunConfig, adapter: Path, directory: Path) -> Incumbent:
    """The registered model's champion, its LoRA brought into ``directory``, to compare the one in ``adapter`` with.

    Absent where there is none, where it is this very LoRA (a run that is started again), and where its version does not say
    that it is for this base model. Raises MarbleError if MLflow fails.
    """
    name = config.registry.model
    with mlflow_client() as client:
        from mlflow.artifacts import download_artifacts

        champion = holder(client, name)
        if champion is None:
            if said := lost(client, name):
                return Incumbent(absent=f"{loss(name, said)}; the base is what counts here.")
            return Incumbent(absent=f"The registered model {name} has no champion yet, so the base is what counts.")
        who = f"The champion, version {champion} of {name},"
        tags = client.get_model_version(name, champion).tags
        if (tags.get(BASE_TAG), tags.get(REVISION_TAG)) != (config.model.path, config.model.revision or ""):
            base = " ".join(filter(None, (tags.get(BASE_TAG, "a base model that it does not name"), tags.get(REVISION_TAG))))
            return Incumbent(champion, absent=f"{who} is for {base}, so it is not compared with, and the base is what counts.")
        found = Path(download_artifacts(f"models:/{name}/{champion}/{ADAPTER_DIRECTORY}", dst_path=str(directory)))
    if not (found / ADAPTER_FILE).is_file():
        return Incumbent(champion, absent=f"{who} holds no {ADAPTER_FILE}, so it is not compared with.")
    if _sha256(found / ADAPTER_FILE) == _sha256(Path(adapter) / ADAPTER_FILE):
        return Incumbent(champion, absent=f"{who} is this very LoRA, so the base is what counts.")
    return Incumbent(champion, found)


def register_version(
    config: RunConfig,
    evaluation: Evaluation,
    decision: Decision,
    images: Path,
    run_id: str,
    more: Mapping[str, str] | None = None,
    *,
    cards: Cards,
) -> tuple[str, str]:
    """Make the LoRA that MLflow run ``run_id`` logged a version of ``registry.model``; returns the version and its alias.

    Its description and tags (``more`` are further ones) have the decision, the reasons and the numbers, its files the model
    card, with images from ``images`` and, by the rewards' ``cards``, the licences of what they read. It becomes ``champion`` if it is promoted, but ``challenger`` if it is not, or if another
    version became champion since the evaluation. A promotion drops the old challenger, which was measured against an older
    champion. Called again for the same LoRA, it updates the version there is. Raises MarbleError if the run logged no LoRA or
    MLflow fails.
    """
    name = config.registry.model
    with mlflow_client() as client:
        run_tags = client.get_run(run_id).data.tags
        uri = run_tags.get(MODEL_URI_TAG)
        if uri is None:
            raise MarbleError(
                f"The MLflow run {run_id} logged no LoRA (tag {MODEL_URI_TAG}); let the train stage finish first."
            )
        with scratch_directory() as card:
            write_card(card, config, evaluation, decision, images, name, run_id, cards)
            client.log_model_artifacts(uri.removeprefix("models:/"), str(card))
        made = _create_version(client, name, uri, run_id)
        tags = _tags(evaluation, decision) | dict(more or {})
        tags |= {BASE_TAG: config.model.path, REVISION_TAG: config.model.revision or "", "marble.config_digest": config.digest}
        said, champion = describe(evaluation, decision), holder(client, name)
        alias, told = CHAMPION if champion == made else CHALLENGER, ""
        if champion != made and decision.promote:
            if ROLLED_BACK_TAG in client.get_model_version(name, made).tags:
                told = "Not made champion again: it was rolled back; marble rollback --to makes it champion."
            elif champion not in (None, evaluation.champion_version):
                told = f"Not made champion: version {champion} became it after this evaluation; run the pipeline again."
            else:
                promoted, told = move(client, name, made, champion)
                alias = CHAMPION if promoted else CHALLENGER
            if alias == CHALLENGER:
                tags["marble.decision"] = f"challenger: {told}"
        if alias == CHAMPION:
            tags[CHAMPION_OF_TAG] = name
        for key, value in tags.items():
            client.set_model_version_tag(name, made, key, value)
            client.set_tag(run_id, key, value)
        client.update_model_version(name, made, "\n\n".join(filter(None, (said, told)))[:DESCRIPTION])
        here = f"This is version {made} of {name}, {alias}."
        _describe_run(client, run_id, "\n\n".join(filter(None, (said, told, here))))
        if alias == CHALLENGER:
            client.set_registered_model_alias(name, alias, made)
        elif decision.promote and holder(client, name, CHALLENGER) is not None:
            client.delete_registered_model_alias(name, CHALLENGER)
    return made, alias


def champion_tags(name: str) -> tuple[str, dict[str, str]] | None:
    """Version and tags of the champion of the registered model ``name``; None where there never was one.

    Raises MarbleError where there was one and is none any more.
    """
    with mlflow_client() as client:
        champion = holder(client, name)
        if champion is None and (said := lost(client, name)):
            raise MarbleError(f"{loss(name, said)}.")
        return None if champion is None else (champion, dict(client.get_model_version(name, champion).tags))


def record_refusal(evaluation: Evaluation, decision: Decision, run_id: str) -> None:
    """Write decision, reasons and numbers to MLflow run ``run_id``, without making a version."""
    with mlflow_client() as client:
        for key, value in _tags(evaluation, decision).items():
            client.set_tag(run_id, key, value)
        _describe_run(client, run_id, describe(evaluation, decision))


def roll_back(name: str, to: str | None = None) -> tuple[str, str]:
    """Give the alias ``champion`` back to the version that the present one replaced, or to version ``to``.

    Returns (from, to); both versions' tags say who was replaced, and when. Raises MarbleError where there is no such version.
    """
    with mlflow_client() as client:
        champion = holder(client, name)
        if champion is None:
            raise MarbleError(
                f"The registered model {name!r} has no champion to roll back; see marble ui for the models there are."
            )
        target = to or client.get_model_version(name, champion).tags.get(PREVIOUS_TAG)
        versions = sorted((int(v.version) for v in client.search_model_versions(named(name))), reverse=True)
        others = ", ".join(str(v) for v in versions if str(v) != champion) or "none"
        if not target:
            raise MarbleError(f"Version {champion} of {name!r} replaced no other; name one with --to (there are {others}).")
        if target == champion or target not in map(str, versions):
            what = "is the champion already" if target == champion else "does not exist"
            raise MarbleError(f"Version {target} of {name!r} {what}; name another with --to (there are {others}).")
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        client.set_registered_model_alias(name, CHAMPION, target)
        _set_tags(client, name, champion, {ROLLED_BACK_TAG: target, "marble.rolled_back_at": when})
        _set_tags(client, name, target, {"marble.rolled_back_from": champion, "marble.rolled_back_at": when})
    return champion, target


def _describe_run(client: MlflowClient, run_id: str, said: str) -> None:
    """The run's own page begins with what came of it; what the logged numbers mean stands below."""
    client.set_tag(run_id, "mlflow.note.content", described(said, metric_glossary.as_markdown()))


def _tags(evaluation: Evaluation, decision: Decision) -> dict[str, str]:
    gains = {"marble.mean_gain": evaluation.mean_gain}
    if evaluation.champion:
        gains["marble.mean_gain_over_champion"] = evaluation.champion.mean_gain
    tags = {
        "marble.decision": decision.summary,
        "marble.reasons": "\n".join(decision.reasons),
        "marble.rewards": ",".join(evaluation.rewards),
        "marble.alarms": ",".join(dict.fromkeys(alarm.kind for alarm in evaluation.alarms)),
        "marble.compared_with": evaluation.champion_version or "" if evaluation.champion else "",
    }
    for key, gain in gains.items():
        tags |= {key: f"{gain.mean:.4f}", f"{key}_interval": f"{gain.low:.4f} {gain.high:.4f}"}
    if evaluation.strength != 1:
        tags["marble.strength"] = f"{evaluation.strength:g}"
    return tags | {f"reward.{n}": f"{r.base:.4f} -> {r.trained:.4f}" for n, r in evaluation.measured.items()}


def _create_version(client: MlflowClient, name: str, uri: str, run_id: str) -> str:
    """The version of ``name`` that holds ``uri``: the one there is, or a new one, waited for."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=ABOUT)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions: list[ModelVersion] = client.search_model_versions(f"{named(name)} and run_id = {quoted(run_id)}")
    if same := [int(v.version) for v in versions if v.source == uri]:
        return str(max(same))
    made = client.create_model_version(
        name, source=uri, run_id=run_id, model_id=uri.removeprefix("models:/"), await_creation_for=WAIT_S
    )
    return str(made.version)


def _set_tags(client: MlflowClient, name: str, of_version: str, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(name, of_version, key, value)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def fetch_adapter(uri: str, directory: Path | str) -> Path:
    """The file of a LoRA: what ``uri`` names as marble_core.storage.uri reads it, or what ``models:/NAME@ALIAS`` or
    ``models:/NAME/VERSION`` names, brought to ``directory``.

    Raises MarbleError where MLflow has no such version, or there is no LoRA.
    """
    if not uri.startswith("models:/"):
        if "://" not in uri and uri.count("/") != 1 and not Path(uri).exists():  # with one slash it may be the hub's
            raise MarbleError(
                f"There is no LoRA at {uri}: give train's directory, which holds {ADAPTER_FILE}, a LoRA's file, an address, or "
                "models:/NAME@ALIAS."
            )
        return fetch_lora(uri)
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return lora_file(Path(download_artifacts(f"{uri.rstrip('/')}/{ADAPTER_DIRECTORY}", dst_path=str(directory))))
    except (MlflowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        raise MarbleError(f"The LoRA {uri} cannot be had from MLflow ({reason}); marble ui shows what is there.") from None
