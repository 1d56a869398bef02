"""What a checkpoint costs: `python tests/faults/cost.py`. CPU seconds are of this process, background threads included.

The demo's step at its preset's size against its checkpoint, S3 server and lease included; and a state of SD3.5-Medium's size,
18.8 M LoRA parameters with default, old, EMA and Adam's two moments, on the local disk.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from marble_core.checkpoints import CheckpointStore
from marble_core.config.loading import load_config
from marble_core.prompts.dataset import prepare_data
from marble_core.services.seaweedfs import SeaweedFS
from marble_core.step import optimizer_step
from marble_core.storage.s3 import S3
from marble_core.training.loop import start_learner
from marble_core.training.state import save_state

STEPS = 3


def demo(directory: Path) -> None:
    config = load_config("demo")
    prompts = prepare_data(config).train
    learner = start_learner(config)
    optimizer_step(learner, prompts)  # warm
    store = CheckpointStore(directory / "local", S3("marble"), "cost", config.storage)
    costs: dict[str, list[tuple[float, float]]] = {"step": [], "held up": [], "checkpoint": []}
    with store.owned():
        for _ in range(STEPS):
            began = now()
            optimizer_step(learner, prompts)
            costs["step"].append(since(began))
            began = now()
            store.save(learner.step, lambda path: save_state(learner, path))
            costs["held up"].append(since(began))
            assert store.flush(60)
            costs["checkpoint"].append(since(began))
    wall, cpu = ({name: statistics.median(pair[n] for pair in pairs) for name, pairs in costs.items()} for n in (0, 1))
    print(
        f"demo: a step {wall['step']:.2f} s ({cpu['step']:.2f} s CPU); its checkpoint holds it up {wall['held up']:.3f} s",
        end="",
    )
    print(
        f" ({wall['held up'] / wall['step']:.1%}), and takes {cpu['checkpoint']:.3f} s CPU in all ({cpu['checkpoint'] / cpu['step']:.1%})"
    )


def medium(directory: Path) -> None:
    layers = {f"layer.{n}": torch.nn.Parameter(torch.randn(1536, 32)) for n in range(382)}  # 18.8 M
    adapters = {"default": layers, "old": {n: p.detach().clone() for n, p in layers.items()}}
    ema = {n: p.detach().clone() for n, p in layers.items()}
    policy = SimpleNamespace(parameters_of=adapters.__getitem__, ema=ema, old_is_default=False)
    optimizer = torch.optim.AdamW(layers.values())
    for p in layers.values():
        p.grad = torch.randn_like(p)
    optimizer.step()
    config, balancer = load_config("demo"), SimpleNamespace(state=dict)
    learner: Any = SimpleNamespace(
        step=1, updates=1, policy=policy, optimizer=optimizer, balancer=balancer, config=config, history=[]
    )
    store = CheckpointStore(directory, None, "medium")
    for step in range(1, 4):
        began = now()
        path = store.save(step, lambda path: save_state(learner, path))
        wall, cpu = since(began)
        size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
        print(f"SD3.5-Medium's size: {size:.0f} MB written and hashed in {wall:.2f} s ({cpu:.2f} s CPU)")


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    wall, cpu = now()
    return wall - began[0], cpu - began[1]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        medium(Path(scratch) / "medium")
        with SeaweedFS(Path(scratch) / "s3") as server:
            os.environ |= server.environment
            server.make_bucket("marble")
            demo(Path(scratch))
