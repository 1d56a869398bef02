"""A model's champion: it never was, it is, or it was and is gone. And how another one takes its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marble_core.config.schema import CHAMPION

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREVIOUS_TAG = "marble.previous_champion"  # on a version that became champion: the one it replaced, empty if none
ROLLED_BACK_TAG = "marble.rolled_back_to"  # on a version that a person took the alias from
CHAMPION_OF_TAG = "marble.champion_of"  # on the MLflow run whose LoRA became champion of the model of this name
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow has the second for a missing alias


def holder(client: MlflowClient, name: str, alias: str = CHAMPION) -> str | None:
    """The version that has the alias; None where there is none, or no such model."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in _NOT_THERE:
            return None
        raise


def lost(client: MlflowClient, name: str) -> str:
    """Of a model without a champion: what says that it had one, in words; empty where it never had.

    A version that became champion says so, and so does the run that it came from, also where the model itself is gone.
    """
    crowned = [v for v in client.search_model_versions(named(name)) if PREVIOUS_TAG in v.tags]
    if crowned:
        return f"version {max(int(v.version) for v in crowned)} was its champion"
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(
        experiments, f"tags.`{CHAMPION_OF_TAG}` = {quoted(name)}", max_results=1, order_by=["start_time DESC"]
    )
    return f"the run {runs[0].info.run_name} made its champion" if runs else ""


def loss(name: str, said: str) -> str:
    """The sentence for it."""
    return (
        f"The registered model {name} has no champion any more, though {said}. Give the alias 'champion' back to a version in "
        "MLflow's pages, or name another model with registry.model"
    )


def move(client: MlflowClient, name: str, made: str, before: str | None) -> tuple[bool, str]:
    """Gives ``made`` the alias that ``before`` had when it was looked at. Returns whether ``made`` has it now, and what is to be
    said besides.

    MLflow moves an alias whoever has it, so it is looked at once more right before and after: of two registrations at one time
    the later has the alias, the earlier one's version stands as its predecessor, and both say so.
    """
    already = _claimants(client, name, before)
    now = holder(client, name)
    if now not in (before, made):
        return False, f"Not made champion: version {now} became it meanwhile; run the pipeline again."
    client.set_model_version_tag(name, made, PREVIOUS_TAG, before or "")
    client.set_registered_model_alias(name, CHAMPION, made)
    if (now := holder(client, name)) != made:
        client.set_model_version_tag(name, now or made, PREVIOUS_TAG, made)
        return (
            False,
            f"Version {now} became champion at the same time, and was not compared with this one; run the pipeline again.",
        )
    rivals = _claimants(client, name, before) - already - {int(made)}
    if rivals:
        client.set_model_version_tag(name, made, PREVIOUS_TAG, str(max(rivals)))
        return True, f"Version {max(rivals)} became champion at the same time, and was not compared with this one."
    return True, ""


def _claimants(client: MlflowClient, name: str, before: str | None) -> set[int]:
    """The versions that say to have replaced ``before``, and were not rolled back."""
    found = client.search_model_versions(named(name))
    return {int(v.version) for v in found if v.tags.get(PREVIOUS_TAG) == (before or "") and ROLLED_BACK_TAG not in v.tags}


def named(name: str) -> str:
    """The filter for the versions of a model, whatever its name holds."""
    return f"name = {quoted(name)}"


def quoted(text: str) -> str:
    """A text in MLflow's filters, which know no escape: in the marks that it does not hold."""
    return f'"{text}"' if "'" in text else f"'{text}'"
