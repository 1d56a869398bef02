"""The form of the pipeline, which Kubeflow's page shows, as overrides of the configuration.

Every field is a text, and an empty one leaves what the preset says: KFP's parameters know no null, and its page blocks Start where a
field has no default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel

from marble_core.config.loading import load_config
from marble_core.config.schema import RunConfig
from marble_core.types import MarbleError

KEYS = {
    "base_model": "model.path",
    "method": "balance.method",
    "steps": "train.steps",
    "seed": "seed",
    "start_from": "train.start_from",
    "new_prompts": "data.new_prompts",
    "gate_margin": "registry.margin",
    "bucket": "storage.bucket",
    "registered_model": "registry.model",
}
AS_THE_PRESET = "preset"  # of a drop-down, from which the page wants a choice: it might not take an empty one
NUMBERS: dict[str, tuple[type[int | float], str]] = {
    "steps": (int, "a whole number, such as 300"),
    "seed": (int, "a whole number, such as 0"),
    "gate_margin": (float, "a number, such as 0.02"),
}
OWN = {  # fields of the form that are none of the configuration
    "preset": "What everything starts from: demo (minutes, no GPU) or one for SD3.5. Empty fields below leave its values.",
    "rehearse": "With yes, two steps and few prompts through every stage, to a scratch model; it says what a run will take.",
    "prompts": 'Prompt files to train on, as "general=s3://bucket/file.jsonl ocr=... geneval=...".',
    "held_out": "Prompt files to evaluate on, in the same form.",
    "rewards": 'Names, such as "pickscore,hpsv2,ocr". Those that the preset has keep their options.',
    "gpus": "GPUs of the training pod, one process each; empty or 0 trains on its CPUs.",
    "evaluation_gpus": "GPUs of the evaluation's pod, which share its prompts; empty or 0 evaluates on its CPUs.",
    "accelerator": "The resource that these are, such as nvidia.com/gpu or amd.com/gpu.",
    "run_id": "The name of the run; empty for a new one. A run that exists goes on from its newest checkpoint.",
    "config": 'Any other override as JSON, {"optimizer": {"lr": 1e-4}} or ["optimizer.lr=1e-4"]. The fields above win.',
}


def descriptions() -> dict[str, str]:
    """What the form says of each of its fields: for one of the configuration, that field's own description without its source."""
    said = {}
    for name, key in KEYS.items():
        section: type[BaseModel] = RunConfig
        *above, last = key.split(".")
        for part in above:
            section = cast(type[BaseModel], section.model_fields[part].annotation)
        said[name] = str(section.model_fields[last].description).rpartition(" [")[0]
    return OWN | said


def overrides_of(
    preset: str, config: str = "", prompts: str = "", held_out: str = "", rewards: str = "", gpus: str = "", **fields: str
) -> list[str]:
    """Overrides ``section.key=value``: those of ``config`` first, then the form's own fields (see KEYS).

    ``config`` is a JSON list of overrides or a JSON object such as {"train": {"steps": 100}}; ``prompts`` and ``held_out`` are
    "source=URI source=URI"; ``rewards`` are names, of which those that are configured already keep their options. Raises
    MarbleError, which names the field.
    """
    made = _of_json(config)
    for key, text in (("data.train", prompts), ("data.evaluation", held_out)):
        made += [_override(f"{key}.{source}", uri) for source, uri in _sources(text)]
    if rewards.strip():
        made.append(_override("rewards", _rewards(rewards, preset, made)))
    if count := _count("gpus", gpus):
        made += [_override("train.processes", count), _override("hardware.gpus", count)]
    _count("evaluation_gpus", fields.pop("evaluation_gpus", ""))  # of a pod, and nothing of the configuration
    is_rehearsal({"rehearse": fields.pop("rehearse", "")})  # prepare shortens the configuration that the rest makes
    for field, text in fields.items():
        if text.strip() and (field, text) != ("new_prompts", AS_THE_PRESET):
            made.append(_override(KEYS[field], _number(field, text) if field in NUMBERS else text.strip()))
    return made


def gpus_of(form: Mapping[str, Any]) -> tuple[str, str]:
    """The GPUs of the pods of train and evaluate, as texts. Raises MarbleError, which names the field."""
    return str(_count("gpus", form.get("gpus", ""))), str(_count("evaluation_gpus", form.get("evaluation_gpus", "")))


def gpus_held(config: RunConfig, form: Mapping[str, Any], on_cluster: bool) -> tuple[int, int]:
    """The GPUs that the run holds while it trains, over all nodes, and while it evaluates; here, those of ``hardware``."""
    if not on_cluster:
        return config.hardware.gpus, config.hardware.gpus // config.train.nodes
    train, nodes = config.train, config.train.nodes
    own, evaluation = map(int, gpus_of(form))
    return (nodes * train.processes if nodes > 1 else own), evaluation


def is_rehearsal(form: Mapping[str, Any]) -> bool:
    """Raises MarbleError for what is neither yes nor no."""
    text = str(form.get("rehearse", "")).strip().lower()
    if text not in ("", "no", "yes"):
        raise MarbleError(f"The pipeline's parameter rehearse is {text[:60]!r}: give yes, or nothing for the run itself.")
    return text == "yes"


def _count(name: str, text: str) -> int:
    if not (text.strip() or "0").isdecimal():
        raise MarbleError(f"The pipeline's parameter {name} is {text[:60]!r}: give a number of GPUs, such as 8, or 0 for none.")
    return int(text.strip() or 0)


def _number(field: str, text: str) -> int | float:
    read, what = NUMBERS[field]
    try:
        return read(text)
    except ValueError:
        raise MarbleError(
            f"The pipeline's parameter {field} is {text[:60]!r}: give {what}, or nothing for the preset's."
        ) from None


def _override(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value, ensure_ascii=False)}"  # YAML reads the halves of \\u escapes as no text


def _of_json(config: str) -> list[str]:
    try:
        value = json.loads(config or "[]")
    except ValueError as error:
        raise MarbleError(
            f"The pipeline's parameter config is not JSON ({error}): write [] where there is nothing to say."
        ) from None
    if isinstance(value, dict):
        return [_override(key, below) for key, below in value.items()]
    if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise MarbleError('The pipeline\'s parameter config must be like {"train": {"steps": 100}} or ["train.steps=100"].')
    return value


def _sources(text: str) -> list[tuple[str, str]]:
    pairs = [item.partition("=") for item in text.split()]
    seen = set()
    for source, _, uri in pairs:
        if not (source and uri):
            raise MarbleError(
                f"The prompt files {text[:100]!r} must be of the form 'general=URI ocr=URI geneval=URI': they are the names of files, "
                "in which the prompts stand."
            )
        if source in seen:
            raise MarbleError(f"The prompt files name the source {source[:60]!r} twice: put its prompts into one file.")
        seen.add(source)
    return [(source, uri) for source, _, uri in pairs]


def _rewards(names: str, preset: str, overrides: list[str]) -> list[dict[str, Any]]:
    configured = {reward.name: reward for reward in load_config(preset, overrides=overrides).rewards}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    return [configured[n].model_dump(mode="json") if n in configured else {"name": n} for n in wanted]
