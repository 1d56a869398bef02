"""What MLflow must let a run do, tried: for marble_core.preflight. Each raises MarbleError, or returns a note, or None for yes."""

from __future__ import annotations

import time
from pathlib import Path

from marble_core.config.stage_files import ADAPTER_DIRECTORY, ADAPTER_FILE
from marble_core.tracking.champion import holder, loss, lost, quoted
from marble_core.tracking.connection import mlflow_client
from marble_core.tracking.run_tree import experiment_of
from marble_core.types import MarbleError

PROBE = "preflight"  # the logged model that every preflight of an experiment writes its file to


def experiment(name: str) -> str | None:
    """It is there, or can be made, and was not deleted."""
    with mlflow_client() as client:
        found = client.get_experiment_by_name(name)
        if found is None:
            experiment_of(client, name)
        elif found.lifecycle_stage == "deleted":
            raise MarbleError(
                f"The experiment {name!r} was deleted in MLflow: restore it (mlflow experiments restore -x {found.experiment_id}), "
                "or name another with storage.experiment."
            )
    return None


def log_model(name: str, file: Path) -> str | None:
    """The file goes the way of a LoRA: into a logged model, by the artifact store."""
    from mlflow.exceptions import MlflowException

    with mlflow_client() as client:
        found = client.get_experiment_by_name(name)
        assert found is not None, "the experiment was asked for before"
        try:
            known = client.search_logged_models([found.experiment_id], f"name = '{PROBE}'", max_results=1)
            model = known[0] if known else client.create_logged_model(found.experiment_id, PROBE)
        except MlflowException as error:
            if error.error_code in ("ENDPOINT_NOT_FOUND", "RESOURCE_DOES_NOT_EXIST", "NOT_FOUND") or "404" in str(error):
                raise MarbleError(
                    "The MLflow server knows no logged models, into which train writes its LoRA: it must be MLflow 3 or newer."
                ) from None
            raise
        client.log_model_artifact(model.model_id, str(file))
    return None


def registered_model(name: str) -> str | None:
    """May be written. Where there is none yet, one of another name is made, as register would make it, and removed again: the
    model itself may get its first version from another run at the same moment."""
    from mlflow.exceptions import MlflowException

    with mlflow_client() as client:
        tried = name
        try:
            client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            tried = f"{name}-{PROBE}"
            try:
                client.create_registered_model(tried)
            except MlflowException as refused:
                if refused.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        try:
            client.set_registered_model_tag(tried, "marble.preflight", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
        except MlflowException as error:
            if tried == name or error.error_code != "RESOURCE_DOES_NOT_EXIST":  # removed by another preflight
                raise
        if tried != name:
            try:
                client.delete_registered_model(tried)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    return f"yes; the empty model {tried} stays, for it may not be deleted"
    return None


def run(experiment_name: str, run_id: str) -> str | None:
    """It never was, or it goes on, or it was deleted, which is said."""
    from mlflow.entities import ViewType

    with mlflow_client() as client:
        found = client.get_experiment_by_name(experiment_name)
        assert found is not None, "the experiment was asked for before"
        own = client.search_runs([found.experiment_id], f"tags.`marble.run_id` = {quoted(run_id)}", ViewType.ALL)
        if not own:
            return None
        if any(each.info.lifecycle_stage == "active" for each in own):
            return "it is there and goes on"
        return (
            f"it was deleted: a new one is made, which gets the metrics of all steps again (or: mlflow runs restore --run-id "
            f"{own[0].info.run_id})"
        )


def champion(name: str) -> str | None:
    """There never was one, or its LoRA can be had, or it was lost, which is said."""
    from mlflow.artifacts import list_artifacts

    with mlflow_client() as client:
        version = holder(client, name)
        if version is None:
            return f"{loss(name, said)}." if (said := lost(client, name)) else "there never was one: the base is what counts"
        where = f"models:/{name}/{version}/{ADAPTER_DIRECTORY}"
        names = {Path(each.path).name for each in list_artifacts(where)}
        if ADAPTER_FILE not in names:
            raise MarbleError(
                f"The champion of {name}, version {version}, has no {ADAPTER_FILE} in MLflow's artifact store any more, and evaluate "
                "compares with it. Bring it back, or give the alias 'champion' to another version (marble rollback)."
            )
    return None
