"""A learner's state <-> a directory: everything the next step depends on, as safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from marble_core.step import Learner
from marble_core.types import MarbleError

HISTORY = "history.jsonl"


def save_state(learner: Learner, directory: Path) -> None:
    """Everything the next step depends on, as safetensors and JSON."""
    policy = learner.policy
    names = list(policy.parameters_of("default"))
    tensors: dict[str, torch.Tensor] = {
        f"{adapter}/{n}": p for adapter in ("default", "old") for n, p in policy.parameters_of(adapter).items()
    }
    tensors |= {f"ema/{n}": p for n, p in policy.ema.items()}
    for n, p in policy.parameters_of("default").items():
        tensors |= {f"adam/{key}/{n}": value for key, value in learner.optimizer.state[p].items()}
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, directory / "state.safetensors")
    state = {
        "step": learner.step,
        "updates": learner.updates,
        "old_is_default": policy.old_is_default,
        "balancer": learner.balancer.state(),
        "config": learner.config.digest,
        "method": learner.config.balance.method,
        "rewards": list(learner.config.reward_names),
        "parameters": names,
    }
    (directory / "state.json").write_text(json.dumps(state, indent=2))
    (directory / "config.json").write_text(learner.config.to_json())
    write_history(learner.history, directory / HISTORY)


def write_history(history: Sequence[dict[str, Any]], path: Path) -> None:
    """One JSON line a step: step, metrics, notes."""
    path.write_text("".join(json.dumps(line) + "\n" for line in history))


def load_state(learner: Learner, directory: Path) -> None:
    """The inverse of ``save_state``. Raises MarbleError if the checkpoint belongs to another configuration."""
    state: dict[str, Any] = json.loads((directory / "state.json").read_text())
    tensors = load_file(directory / "state.safetensors")
    policy = learner.policy
    default = policy.parameters_of("default")
    if state["parameters"] != list(default) or any(tensors[f"default/{n}"].shape != p.shape for n, p in default.items()):
        raise MarbleError(f"The checkpoint {directory} belongs to another model or LoRA rank; start with another run id.")
    ours = {"method": learner.config.balance.method, "rewards": list(learner.config.reward_names)}
    for key, value in ours.items():
        if state[key] != value:
            raise MarbleError(
                f"The checkpoint {directory} was made with {key} {state[key]}, not {value}; start with another run id."
            )
    with torch.no_grad():
        for adapter in ("default", "old"):
            for n, p in policy.parameters_of(adapter).items():
                p.copy_(tensors[f"{adapter}/{n}"])
    policy.ema = {n: tensors[f"ema/{n}"].clone() for n in default}
    for n, p in default.items():
        if f"adam/step/{n}" in tensors:
            learner.optimizer.state[p] = {key: tensors[f"adam/{key}/{n}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
    policy.old_is_default = state["old_is_default"]
    learner.balancer.load_state(state["balancer"])
    learner.step, learner.updates = state["step"], state["updates"]
    learner.history = [json.loads(line) for line in (directory / HISTORY).read_text().splitlines()]
