"""MLflow's client, whose failures are one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from marble_core.runtime.environment import MLFLOW_DIRECTORY
from marble_core.runtime.files import full_disk
from marble_core.types import MarbleError, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's own defaults let a call wait for 246 s when the server is gone, and report every use to its makers.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_HINTS = {
    "413": "the file is too large for what stands before the server: raise the limit of its ingress (nginx: proxy-body-size)",
    "401": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "403": "the user of MLFLOW_TRACKING_USERNAME needs the permission EDIT for it",
    "PERMISSION_DENIED": "the user of MLFLOW_TRACKING_USERNAME needs the permission EDIT for it",
}


def client_of(where: str) -> MlflowClient:
    """MLflow's client of this server, with the defaults above where the environment has none of its own."""
    _set_defaults()
    from mlflow import MlflowClient

    return MlflowClient(where)


def _set_defaults() -> None:
    for key, value in _DEFAULTS.items():
        os.environ.setdefault(key, value)


@contextmanager
def mlflow_client() -> Iterator[MlflowClient]:
    """A client of MLFLOW_TRACKING_URI. Raises MarbleError for whatever MLflow, or what stands before it, refuses."""
    _set_defaults()
    import mlflow
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException  # mlflow's own of the artifact store: they pass through it

    try:
        yield mlflow.MlflowClient()
    except (MlflowException, RequestException) as error:
        said = " ".join(str(error).split()).rstrip(".")
        if unreachable := re.search(r"NewConnectionError.*?\[Errno -?\d+\] ([\w ]+)|NameResolutionError", said):
            raise MarbleError(
                f"MLflow at {without_secrets(mlflow.get_tracking_uri())} does not answer ({unreachable[1] or 'no such host'}): "
                "check MLFLOW_TRACKING_URI, and that the server runs."
            ) from error
        said = said if len(said) <= 400 else f"{said[:150]} ... {said[-250:]}"  # the reason stands at the end
        status = str(getattr(getattr(error, "response", None), "status_code", "") or getattr(error, "error_code", ""))
        hint = _HINTS.get(status, "check MLFLOW_TRACKING_URI and the server")
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            hint = "set MARBLE_CA to the file of its authority (PEM)"
        raise full_disk(os.environ.get(MLFLOW_DIRECTORY)) or MarbleError(
            f"MLflow at {mlflow.get_tracking_uri()} refused: {said}; {hint}."
        ) from error
