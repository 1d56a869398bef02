"""One phase of the demo model's pretraining: steps, an average of the weights, and the whole state in one file.

What a step draws at random is a function of (seed, phase, step), so that a phase that was killed and goes on from its last
checkpoint ends with the same weights, to the bit, as one that was not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from marble_core.runtime.seeding import derive
from marble_core.types import MarbleError

CHECKPOINTS = 20  # of a phase
AVERAGING_WARMUP = 10.0  # steps: the average is over all that has been while that is short

Show = Callable[[str, int, int, float | None], None]  # phase, steps done, of how many, loss
Schedule = Callable[[int, int], float]  # step, of how many -> share of the peak learning rate
LossOf = Callable[[int, torch.Generator], Tensor]


class Phase:
    """Trains ``module`` for ``steps`` steps with ``optimizers``, whose groups' learning rates are the peaks of ``schedule``.

    ``decay`` is that of the exponential moving average, which ``run`` leaves in the module. ``file`` is the checkpoint.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        steps: int,
        schedule: Schedule,
        decay: float,
        seed: int,
        file: Path,
    ) -> None:
        self.name, self.module, self.optimizers, self.steps = name, module, optimizers, steps
        self.schedule, self.decay, self.seed, self.file = schedule, decay, seed, file
        self.values = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.averages = {name: value.detach().clone() for name, value in self.values.items()}
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def run(self, loss_of: LossOf, show: Show) -> None:
        """Goes on from the checkpoint, if there is one, to the last step. A gradient that is not finite is a RuntimeError."""
        for step in range(self._restore(), self.steps):
            loss = self._step(step, loss_of)
            if is_checkpoint(step + 1, self.steps):
                write(self.file, self._state(), step=step + 1, steps=self.steps)
            show(self.name, step + 1, self.steps, loss)
        with torch.no_grad():
            for name, value in self.values.items():
                value.copy_(self.averages[name])

    def _step(self, step: int, loss_of: LossOf) -> float:
        share = self.schedule(step, self.steps)
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            optimizer.zero_grad()
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
        loss = loss_of(step, torch.Generator().manual_seed(derive(self.seed, self.name, step)))
        loss.backward()
        nn.utils.clip_grad_norm_(self.values.values(), 1.0, error_if_nonfinite=True)
        for optimizer in self.optimizers:
            optimizer.step()
        keep = min(self.decay, (step + 1) / (step + 1 + AVERAGING_WARMUP))
        with torch.no_grad():
            for average, value in zip(self.averages.values(), self.values.values(), strict=True):
                average.lerp_(value, 1 - keep)
        return loss.item()

    def _state(self) -> dict[str, Tensor]:
        state = {f"value/{name}": value.detach() for name, value in self.values.items()}
        state |= {f"average/{name}": value for name, value in self.averages.items()}
        for i, optimizer in enumerate(self.optimizers):
            for j, of_parameter in optimizer.state_dict()["state"].items():
                state |= {f"optimizer/{i}/{j}/{key}": value for key, value in of_parameter.items()}
        return state

    def _restore(self) -> int:
        """The step to go on from."""
        if not self.file.exists():
            return 0
        state, numbers = read(self.file)
        if numbers["steps"] != self.steps:
            raise MarbleError(
                f"{str(self.file)!r} was begun as {numbers['steps']} steps and cannot go on as {self.steps}: "
                "give the number it was begun with, or another --work."
            )
        of_optimizers: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimizers]
        with torch.no_grad():
            for key, saved in state.items():
                kind, name = key.split("/", 1)
                if kind == "optimizer":
                    i, j, what = name.split("/")
                    of_optimizers[int(i)].setdefault(int(j), {})[what] = saved
                else:
                    (self.values if kind == "value" else self.averages)[name].copy_(saved)
        for optimizer, found in zip(self.optimizers, of_optimizers, strict=True):
            optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})
        return numbers["step"]


def is_checkpoint(done: int, steps: int) -> bool:
    """Whether the state is written after so many steps."""
    return done % max(1, steps // CHECKPOINTS) == 0 or done == steps


def write(file: Path, tensors: dict[str, Tensor], **numbers: int) -> None:
    """Atomically: the file is the old one or the new one, whenever the process dies."""
    draft = file.with_suffix(".draft")
    metadata = {name: str(number) for name, number in numbers.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft, metadata=metadata)
    os.replace(draft, file)


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tensors and the numbers of a file that ``write`` wrote."""
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, {name: int(number) for name, number in (opened.metadata() or {}).items()}
