"""What MLflow must let a run do, tried: for marble_core.preflight. Each raises MarbleError, or returns a note, or None for yes."""

from __future__ import annotations

import time
from pathlib import Path

from marble_core.config.stage_files import ADAPTER_DIRECTORY, ADAPTER_FILE
from marble_core.tracking.champion import holder, loss, lost
from marble_core.tracking.connection import mlflow_client
from marble_core.types import MarbleError

PROBE = "preflight"  # the logged model that every preflight of an experiment writes its file to


def experiment(name: str) -> str | None:
    """It is there, or can be made, and was not deleted."""
    from mlflow.exceptions import MlflowException

    with mlflow_client() as client:
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                client.create_experiment(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                    raise
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
    """May be written: it is made where there is none, as register would."""
    from mlflow.exceptions import MlflowException

    with mlflow_client() as client:
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        client.set_registered_model_tag(name, "marble.preflight", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
    return None


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
                "compares with it: bring it back, or give the alias 'champion' to another version (marble rollback)."
            )
    return None
