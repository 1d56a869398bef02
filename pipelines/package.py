"""A compiled pipeline file: its name, its version, and the parameters that a run of it takes."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marble_core.config.errors import leaves
from marble_core.config.loading import load_config
from marble_core.config.pipeline_parameters import KEYS, overrides_of
from marble_core.estimate import GpuHours, allowed_gpu_hours, resolve_batch_sizes
from marble_core.runtime.environment import KUBEFLOW_PAGE, MLFLOW_PAGE, PIPELINE_VERSION
from marble_core.types import MarbleError
from marble_kubeflow.pipelines.grammar import check_accelerator

LARGEST = 100_000  # bytes of a run's parameters: Argo makes a ConfigMap of larger ones, which Kubeflow does not let it
FORM = (*KEYS, "config", "prompts", "held_out", "rewards", "gpus", "evaluation_gpus", "rehearse")


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


# By KFP's name of a parameter's type: how its text is read, and what it must be.
TYPES: dict[str, tuple[Callable[[str], Any], str]] = {
    "STRING": (str, "text"),
    "NUMBER_INTEGER": (int, "a whole number"),
    "NUMBER_DOUBLE": (float, "a number"),
    "BOOLEAN": (_boolean, "true or false"),
    "LIST": (json.loads, "a JSON list"),
    "STRUCT": (json.loads, "a JSON object"),
}


def _for_kubernetes(name: str, value: Any) -> Any:
    """The kubelet reads $$ as $ and $(NAME) as a variable of the pod, a secret's too; Argo resolves {{...}}."""
    if isinstance(value, str) and "{{" in value:
        raise MarbleError(
            f"The pipeline's parameter {name!r} has '{{{{' in it, which Argo would resolve: write a space between."
        )
    return value.replace("$", "$$") if isinstance(value, str) else value


def _from_kubernetes(value: Any) -> Any:
    return value.replace("$$", "$") if isinstance(value, str) else value


@dataclass(frozen=True)
class Parameters:
    """What a pipeline takes: its root's inputDefinitions, by name."""

    pipeline: str
    definitions: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Parameters:
        """``spec`` is a pipeline's specification as the file has it, or as the server answers it, with a platform's or without."""
        spec = spec.get("pipeline_spec", spec)
        return cls(spec["pipelineInfo"]["name"], spec["root"].get("inputDefinitions", {}).get("parameters", {}))

    def values(self, given: Mapping[str, str], kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The given texts as values of their parameters' types, laid over ``kept``, of which unknown ones are left out.

        Raises MarbleError, which names the parameter: an unknown one, one of another type, one that is missing, and, of the
        pipeline of this package, what its first stage would refuse.
        """
        values = {name: _from_kubernetes(value) for name, value in (kept or {}).items() if name in self.definitions}
        values |= {name: self._value(name, text) for name, text in given.items()}
        for name, definition in self.definitions.items():
            if name not in values and "defaultValue" not in definition and not definition.get("isOptional"):
                raise MarbleError(f"The pipeline's parameter {name!r} has no default: give it by --param {name}=VALUE.")
        if self.pipeline == "marble":
            self._gpu_hours(values)
            default = self.definitions.get("accelerator", {}).get("defaultValue", "")
            check_accelerator(str(values.get("accelerator", default)))
        if (size := len(json.dumps(values).encode())) > LARGEST:
            raise MarbleError(
                f"The parameters have {size / 1000:.0f} kB and Kubernetes takes {LARGEST // 1000}. Put prompts into files, and what is "
                "the same for all runs into the configuration of a preset."
            )
        return {name: _for_kubernetes(name, value) for name, value in values.items()}

    def gpu_hours(self, values: Mapping[str, Any]) -> GpuHours | None:
        """The estimate of a run with these values; None of another package's pipeline, and where a model's sizes are not known."""
        return (
            self._gpu_hours({n: _from_kubernetes(value) for n, value in values.items()}) if self.pipeline == "marble" else None
        )

    def _gpu_hours(self, values: Mapping[str, Any]) -> GpuHours | None:
        """Without the rewards' memory, which prepare counts. Raises MarbleError for what prepare would refuse."""
        form = {name: value for name, value in values.items() if name in FORM}
        preset = values.get("preset") or self.definitions.get("preset", {}).get("defaultValue", "demo")
        config = resolve_batch_sizes(load_config(preset, overrides=overrides_of(preset, **form)), {})
        return allowed_gpu_hours(config, form, on_cluster=True)

    def _value(self, name: str, text: str) -> Any:
        if name not in self.definitions:
            leaf, settings = name.rpartition(".")[2], leaves()
            near = [leaf] if leaf in self.definitions else difflib.get_close_matches(name, self.definitions, n=1, cutoff=0.4)
            if leaf not in self.definitions and leaf in settings:
                found = name if name in settings[leaf] else settings[leaf][0]
                raise MarbleError(f"The pipeline has no parameter {name!r}: give the setting by --set {found}={text[:40]}.")
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(self.definitions)) or 'none'}."
            raise MarbleError(f"The pipeline has no parameter {name!r}: {hint}")
        read, what = TYPES.get(self.definitions[name].get("parameterType", "STRING"), TYPES["STRING"])
        try:
            return read(text)
        except (ValueError, LookupError, RecursionError):
            raise MarbleError(f"The pipeline's parameter {name!r} must be {what}, not {text[:100]!r}.") from None


@dataclass(frozen=True)
class Package:
    """A compiled pipeline file. ``version`` is its pipeline's name and the beginning of the file's SHA-256: same file, same name.

    ``tags`` are the version's in Kubeflow, of 63 characters at most: which MARBLE compiled it, and the image that trains. ``pages`` are
    the addresses of Kubeflow's and MLflow's pages by their variables, where the settings named them.
    """

    path: Path
    name: str
    version: str
    parameters: Parameters
    tags: Mapping[str, str] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Package:
        """Raises MarbleError where the file is no compiled pipeline."""
        from google.protobuf.json_format import MessageToDict
        from kfp.components import load_component_from_text

        try:
            content = path.read_bytes()
        except OSError as error:
            raise MarbleError(
                f"The pipeline file {str(path)!r} cannot be read ({error.strerror}): make one by marble compile."
            ) from None
        if path.suffix not in (".yaml", ".yml"):
            raise MarbleError(f"The pipeline file {str(path)!r} must end with .yaml, as marble compile writes it.")
        try:
            spec = MessageToDict(load_component_from_text(content.decode()).pipeline_spec)
            parameters = Parameters.of(spec)
            spec["root"]["dag"]
        except Exception:  # noqa: BLE001 - whatever a YAML, protobuf or KFP error says, it is no pipeline
            raise MarbleError(f"{path} is no compiled pipeline: make one by marble compile.") from None
        name = parameters.pipeline
        return cls(path, name, f"{name}-{hashlib.sha256(content).hexdigest()[:12]}", parameters, *_compiled(spec))


def _compiled(spec: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Tags and pages of a pipeline of this package; none of another."""
    executors = spec.get("deploymentSpec", {}).get("executors", {})
    trains = executors.get("exec-train") or executors.get("exec-study-cell") or {}
    container: Mapping[str, Any] = trains.get("container", {})
    variables = {each["name"]: each.get("value", "") for each in container.get("env", ())}
    if not (compiled := variables.get(PIPELINE_VERSION, "")):
        return {}, {}
    tags = {"marble.version": compiled[:63], "marble.image": container["image"].rpartition("/")[2][:63]}
    return tags, {name: variables[name] for name in (KUBEFLOW_PAGE, MLFLOW_PAGE) if name in variables}
