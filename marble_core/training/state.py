"""A learner's state <-> a directory: everything the next step depends on, as safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from marble_core import __version__
from marble_core.algorithm.learner import Learner
from marble_core.config.formats import CHECKPOINT
from marble_core.config.loading import read_config
from marble_core.config.resume_rules import require_same_run
from marble_core.config.stage_files import CONFIG
from marble_core.training.history_parts import HistoryParts
from marble_core.types import MarbleError

TENSORS = "state.safetensors"


def save_state(learner: Learner, directory: Path, parts: HistoryParts | None = None) -> None:
    """Everything the next step depends on, and the history: the metrics that MLflow may not have yet are in it. ``parts`` are those of
    the checkpoints before, which are linked instead of written."""
    policy = learner.policy
    default = policy.parameters_of("default")
    tensors: dict[str, torch.Tensor] = {
        f"{adapter}/{n}": p for adapter in ("default", "old") for n, p in policy.parameters_of(adapter).items()
    }
    tensors |= {f"ema/{n}": p for n, p in policy.ema.items()}
    for n, p in default.items():
        tensors |= {f"adam/{key}/{n}": value for key, value in learner.optimizer.state[p].items()}
    if learner.meter:
        tensors |= learner.meter.tensors()
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, directory / TENSORS)
    state = {
        "step": learner.step,
        "updates": learner.updates,
        "old_is_default": policy.old_is_default,
        "balancer": learner.balancer.state(),
        "meter": learner.meter.state() if learner.meter else None,
        "config": learner.config.digest,
        "versions": versions(),
        "parameters": list(default),
    }
    (directory / "state.json").write_text(json.dumps(CHECKPOINT.stamp(state), indent=2), encoding="utf-8")
    (directory / CONFIG).write_text(learner.config.to_json(), encoding="utf-8")
    (parts or HistoryParts()).write(learner.history, directory)


def versions() -> dict[str, str]:
    """Of what a step's bits depend on besides the state."""
    return {"marble": __version__, **{name: version(name) for name in ("torch", "diffusers", "peft")}}


def load_state(learner: Learner, directory: Path, parts: HistoryParts | None = None) -> list[str]:
    """The inverse of ``save_state``; ``parts`` become those of this checkpoint. Returns what is worth a note: other versions than those that wrote it.

    Raises MarbleError if it belongs to another model, or to a configuration that this run may not have been begun with.
    """
    require_same_run(read_config(directory / CONFIG), learner.config, directory)
    state: dict[str, Any] = CHECKPOINT.upgrade(
        json.loads((directory / "state.json").read_text(encoding="utf-8")), directory / "state.json"
    )
    tensors = _read_tensors(directory / TENSORS)
    _load_lora(learner, tensors, directory)
    default = learner.policy.parameters_of("default")
    for n, p in default.items():
        if f"adam/step/{n}" in tensors:
            moments = {key: tensors[f"adam/{key}/{n}"].to(p.device, copy=True) for key in ("exp_avg", "exp_avg_sq")}
            learner.optimizer.state[p] = {"step": tensors[f"adam/step/{n}"].clone(), **moments}
    learner.policy.old_is_default = state["old_is_default"]
    learner.balancer.load_state(state["balancer"])
    if learner.meter:
        learner.meter.load(state["meter"], tensors, next(iter(default.values())).device)
    learner.step, learner.updates = state["step"], state["updates"]
    learner.history = (parts or HistoryParts()).read(directory)
    then, now = state["versions"], versions()
    return [f"{n} is {now[n]} now, not {v} as before step {learner.step}" for n, v in then.items() if now.get(n) != v]


def load_weights(learner: Learner, directory: Path) -> None:
    """Begin from another run's LoRA (default, old and EMA), or from a LoRA's file, with an optimizer, balancer and step of our own.

    Raises MarbleError where model, rank, alpha or target layers are not the same; of a LoRA's file the rank may be smaller, and
    alpha is not asked for: its strength is kept, and training goes on at lora.alpha / lora.rank.
    """
    if not (directory / TENSORS).is_file():
        learner.policy.begin_from(learner.policy.read_adapter(directory), directory)
        return
    theirs, ours = read_config(directory / CONFIG), learner.config
    for name, value, wanted in (
        ("lora.rank", theirs.lora.rank, ours.lora.rank),
        ("lora.alpha", theirs.lora.alpha, ours.lora.alpha),
        ("model.path", theirs.model.path, ours.model.path),
    ):
        if value != wanted:
            raise MarbleError(
                f"train.start_from = {ours.train.start_from!r} was trained with {name} = {value}, not {wanted}: set it so."
            )
    _load_lora(learner, _read_tensors(directory / TENSORS), str(ours.train.start_from))
    learner.policy.old_is_default = False


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise MarbleError(f"{path} is no safetensors file ({error}): start from another checkpoint.") from None


def _load_lora(learner: Learner, tensors: Mapping[str, torch.Tensor], where: object) -> None:
    policy = learner.policy
    default = policy.parameters_of("default")
    found = {n.removeprefix("ema/"): t.shape for n, t in tensors.items() if n.startswith("ema/")}
    for name in sorted(found.keys() | default.keys()):
        have, want = found.get(name), default[name].shape if name in default else None
        if have != want:
            shapes = " not ".join("missing," if s is None else f"{tuple(s)}," for s in (have, want)).rstrip(",")
            raise MarbleError(f"The checkpoint {where} belongs to another model or LoRA: its layer {name} is {shapes}.")
    with torch.no_grad():
        for adapter in ("default", "old"):
            for n, p in policy.parameters_of(adapter).items():
                p.copy_(tensors[f"{adapter}/{n}"])
    policy.ema = {n: tensors[f"ema/{n}"].to(p.device, copy=True) for n, p in default.items()}
