"""What is sent to a cluster, held against Kubernetes' grammar before: a bad value is one sentence that names its field."""

from __future__ import annotations

from collections.abc import Callable

from marble_core.config.kubernetes import name, namespace, resource
from marble_core.types import MarbleError

LONGEST = 128  # letters of an experiment's name in Kubeflow's database


def check_order(experiment: str, service_account: str, in_namespace: str) -> None:
    """What a run or a schedule is sent with, beside its parameters; empty is Kubeflow's own choice. Raises MarbleError."""
    for option, text, check in (
        ("--service-account", service_account, name),
        ("--namespace", in_namespace, namespace),
        ("--experiment", experiment, _experiment),
    ):
        if text or check is _experiment:
            _said(option, text, check)


def check_accelerator(text: str) -> None:
    """Kubeflow reads it when the pod of train is made, and fails there."""
    _said("the pipeline's parameter accelerator", text, resource)


def _experiment(text: str) -> str:
    if not text.strip() or len(text) > LONGEST or not text.isprintable():
        raise ValueError(f"an experiment of Kubeflow has a name of 1 to {LONGEST} letters on one line")
    return text


def _said(field: str, text: str, check: Callable[[str], str]) -> None:
    try:
        check(text)
    except ValueError as error:
        raise MarbleError(f"Invalid {field}: {error}.") from None
