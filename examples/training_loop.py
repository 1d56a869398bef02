"""A training loop of your own: the same steps as `marble run`, without pipeline, S3 and MLflow.

python examples/training_loop.py train.steps=4
"""

import sys
from pathlib import Path

from marble_core import load_config, optimizer_step, prepare_data, start_learner


def train(overrides, out):
    config = load_config("demo", overrides=overrides)
    prompts = prepare_data(config).train
    learner = start_learner(config)
    while learner.step < config.train.steps:
        report = optimizer_step(learner, prompts)
        print(report.step, {name: round(value, 3) for name, value in report.metrics.items() if name.endswith("/mean")})
    learner.policy.save_adapter(Path(out), learner.policy.ema)  # what diffusers' load_lora_weights reads
    return learner


if __name__ == "__main__":
    train(sys.argv[1:], "adapter")
