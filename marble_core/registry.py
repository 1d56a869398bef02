"""The gate, and MLflow's model registry. decide() is pure; nothing here imports torch, and MLflow only when it is spoken to.

The train stage hands its LoRA to log_adapter, which is the one function that needs diffusers; register_version then makes a
version of what was logged without it. Aliases: ``champion`` is the version that was promoted last, ``challenger`` a newer
one that was registered although the gate refused it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from marble_core import glossary
from marble_core.comparing import interval
from marble_core.config import RegistryConfig
from marble_core.results import Evaluation, RewardResult
from marble_core.types import MarbleError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
MODEL_URI_TAG = "marble.model_uri"  # on the MLflow run: what log_adapter logged
ADAPTER_FILE = "pytorch_lora_weights.safetensors"
WAIT_S = 120
NEEDED_TO_LOAD = ("diffusers", "peft", "safetensors", "torch", "transformers")


@dataclass(frozen=True)
class Decision:
    """The gate's answer. ``reasons`` are whole sentences with the numbers in them, the deciding ones first."""

    promote: bool
    verdict: Literal["promoted", "worse", "no gain", "not measured"]
    reasons: tuple[str, ...]

    @property
    def summary(self) -> str:
        return "promoted" if self.promote else f"refused: {self.verdict}"


def decide(evaluation: Evaluation, config: RegistryConfig) -> Decision:
    """Promote, unless harm is shown, a reward was not measured, or the gain is not shown.

    Harm is shown in a reward if its whole 95 % interval lies below -margin base standard deviations; a gain is shown if the
    interval of the mean gain lies above 0.
    """
    gain = f"the mean gain over all rewards is {interval(evaluation.mean_gain)} base standard deviations"
    harmed = {n: r for n, r in evaluation.rewards.items() if r.difference.high < -config.margin * r.base_std}
    if harmed:
        return Decision(False, "worse", (*(_harm(n, r, config.margin) for n, r in harmed.items()), _sentence(gain)))
    if evaluation.missing:
        names = ", ".join(evaluation.missing)
        reason = f"{names} applies to no held-out prompt, so harm to it cannot be excluded; add held-out prompts for it."
        return Decision(False, "not measured", (reason, _sentence(gain)))
    if evaluation.mean_gain.low <= 0:
        return Decision(False, "no gain", (_sentence(f"{gain}, an interval that does not lie above 0"),))
    better = [f"{n} {interval(r.difference, r.digits)}" for n, r in evaluation.rewards.items() if r.difference.low > 0]
    reasons = [_sentence(f"{gain}, an interval that lies above 0")]
    if better:
        reasons.append(f"Shown to be better: {', '.join(better)}.")
    reasons.append(f"No reward is shown to be worse by more than {config.margin:g} base standard deviations.")
    return Decision(True, "promoted", tuple(reasons))


def log_adapter(adapter: Path, base_model: str, run_id: str, step: int, metadata: Mapping[str, Any] | None = None) -> str:
    """Log the LoRA in MLflow run ``run_id`` with MLflow's diffusers flavour, and return its uri (``models:/m-...``).

    ``base_model`` is a hub id or an absolute path: what load_pipeline() puts the LoRA on. Needs diffusers and peft, so torch.
    The run keeps the uri in the tag marble.model_uri. Raises MarbleError if ``adapter`` holds no LoRA or MLflow fails.
    """
    weights = Path(adapter) / ADAPTER_FILE
    if not weights.is_file():
        raise MarbleError(f"The adapter directory {adapter} holds no {ADAPTER_FILE}; give the directory that train wrote.")
    with _mlflow_client() as client:
        import mlflow.diffusers

        run = client.get_run(run_id)
        # Left to itself log_model makes the model in the default experiment, whose artifacts may lie elsewhere.
        model = client.create_logged_model(run.info.experiment_id, "adapter", source_run_id=run_id, params=run.data.params)
        mlflow.diffusers.log_model(
            adapter_path=str(weights),
            base_model=base_model,
            model_id=model.model_id,
            run_id=run_id,
            step=step,
            metadata=dict(metadata or {}),
            pip_requirements=[f"{p}=={version(p).partition('+')[0]}" for p in ("mlflow", *NEEDED_TO_LOAD)],
        )
        uri = f"models:/{model.model_id}"
        client.set_tag(run_id, MODEL_URI_TAG, uri)
    return uri


def register_version(name: str, evaluation: Evaluation, decision: Decision, run_id: str, config_digest: str) -> str:
    """Make the LoRA that MLflow run ``run_id`` logged a version of the registered model ``name``; returns the version.

    The version carries decision, reasons and numbers as tags and as its description, and the alias ``champion`` if it is
    promoted, else ``challenger``. A promotion drops the old challenger, which was measured against an older champion. Called
    again for the same run, it updates the version there is. Raises MarbleError if the run logged no LoRA or MLflow fails.
    """
    with _mlflow_client() as client:
        uri = client.get_run(run_id).data.tags.get(MODEL_URI_TAG)
        if uri is None:
            raise MarbleError(
                f"The MLflow run {run_id} logged no LoRA (tag {MODEL_URI_TAG}); let the train stage finish first."
            )
        made = _create_version(client, name, uri, run_id)
        champion = _holder(client, name, CHAMPION)
        tags = _tags(evaluation, decision) | {"marble.config_digest": config_digest}
        if champion is not None and champion != made:
            tags["marble.previous_champion"] = champion
        for key, value in tags.items():
            client.set_model_version_tag(name, made, key, value)
            client.set_tag(run_id, key, value)
        client.update_model_version(name, made, describe(evaluation, decision))
        if decision.promote:
            client.set_registered_model_alias(name, CHAMPION, made)
            if _holder(client, name, CHALLENGER) is not None:
                client.delete_registered_model_alias(name, CHALLENGER)
        else:
            client.set_registered_model_alias(name, CHALLENGER, made)
    return made


def tag_version(name: str, version: str, tags: Mapping[str, str]) -> None:
    with _mlflow_client() as client:
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)


def champion_tags(name: str) -> tuple[str, dict[str, str]] | None:
    """Version and tags of the champion of the registered model ``name``; None where there is none."""
    from mlflow.exceptions import MlflowException

    with _mlflow_client() as client:
        try:
            found = client.get_model_version_by_alias(name, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model; no such alias
                return None
            raise
    return str(found.version), dict(found.tags)


def record_refusal(evaluation: Evaluation, decision: Decision, run_id: str) -> None:
    """Write decision, reasons and numbers to MLflow run ``run_id``, without making a version."""
    with _mlflow_client() as client:
        for key, value in _tags(evaluation, decision).items():
            client.set_tag(run_id, key, value)
        client.set_tag(run_id, "mlflow.note.content", f"{describe(evaluation, decision)}\n\n{glossary.as_markdown()}")


def describe(evaluation: Evaluation, decision: Decision) -> str:
    """Decision, reasons, the table of rewards and how they were measured, as Markdown for MLflow's pages."""
    lines = [f"**{decision.summary[0].upper()}{decision.summary[1:]}.** {' '.join(decision.reasons)}", ""]
    lines += ["| reward | prompts | base | trained | difference (95 % interval) | wins |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {n} | {r.n} | {r.base:.{r.digits}f} | {r.trained:.{r.digits}f} | {interval(r.difference, r.digits)} | {r.win_rate:.0%} |"
        for n, r in evaluation.rewards.items()
    ]
    if s := evaluation.settings:
        how = f"{s.get('solver')}, {s.get('steps')} steps, no guidance, noise seed {s.get('noise_seed')}"
        lines += ["", f"Held-out prompts, the same noise for both models ({how})."]
    return "\n".join(lines)


def _harm(name: str, r: RewardResult, margin: float) -> str:
    limit = -margin * r.base_std
    return (
        f"{name} got worse by {interval(r.difference, r.digits)}, an interval that lies wholly below {limit:+.{r.digits}f}, "
        f"which is {margin:g} of the base's standard deviation."
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _tags(evaluation: Evaluation, decision: Decision) -> dict[str, str]:
    gain = evaluation.mean_gain
    tags = {
        "marble.decision": decision.summary,
        "marble.reasons": "\n".join(decision.reasons),
        "marble.rewards": ",".join(evaluation.rewards),
        "marble.mean_gain": f"{gain.mean:.4f}",
        "marble.mean_gain_interval": f"{gain.low:.4f} {gain.high:.4f}",
    }
    return tags | {f"reward.{n}": f"{r.base:.4f} -> {r.trained:.4f}" for n, r in evaluation.rewards.items()}


def _create_version(client: MlflowClient, name: str, uri: str, run_id: str) -> str:
    """The version of ``name`` that holds ``uri``: the one there is, or a new one, waited for."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions: list[ModelVersion] = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if same := [int(v.version) for v in versions if v.source == uri]:
        return str(max(same))
    made = client.create_model_version(
        name, source=uri, run_id=run_id, model_id=uri.removeprefix("models:/"), await_creation_for=WAIT_S
    )
    return str(made.version)


def _holder(client: MlflowClient, name: str, alias: str) -> str | None:
    holder = client.get_registered_model(name).aliases.get(alias)
    return None if holder is None else str(holder)


@contextmanager
def _mlflow_client() -> Iterator[MlflowClient]:
    """A client of MLFLOW_TRACKING_URI whose failures are one sentence."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        yield mlflow.MlflowClient()
    except MlflowException as error:
        said = " ".join(str(error).split())[:300]
        raise MarbleError(
            f"MLflow at {mlflow.get_tracking_uri()} refused: {said}; check MLFLOW_TRACKING_URI and the server."
        ) from error
