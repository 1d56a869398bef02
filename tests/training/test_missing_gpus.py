"""A run that asked for GPUs and has none says so at its start."""

import torch

from marble_core.config.loading import load_config
from marble_core.training.loop import missing_gpus


def test_fewer_gpus_than_were_asked_for_are_one_sentence_with_what_to_look_for() -> None:
    config = load_config("demo", overrides=["hardware.gpus=16", "train.nodes=2", "train.processes=8", "rollout.prompts=36"])
    assert missing_gpus(config, 8) == missing_gpus(load_config("demo"), 0) == ""
    none, some = missing_gpus(config, 0), missing_gpus(config, 3)
    assert none.startswith(f"Warning: 8 GPUs were asked for and torch {torch.__version__} sees 0: it trains on the CPU")
    assert "sees 3: it trains on 3 of them" in some
    assert all("nvidia-smi" in said and "pod without GPUs" in said for said in (none, some))
