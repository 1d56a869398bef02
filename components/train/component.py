"""Fine-tune a LoRA adapter on all rewards at once."""

from kfp import dsl

from marble_kubeflow.components import image


@dsl.component(base_image=image("train"), packages_to_install=[], install_kfp_package=False)
def train(
    gpus: str,
    accelerator: str,
    prepared: dsl.Input[dsl.Dataset],
    adapter: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train with MARBLE, going on from the run's newest checkpoint in S3.

    Args:
        gpus: The pod's GPUs, as prepare hands them on: 0 where there is nothing to do.
        accelerator: The resource that they are.
        prepared: The directory that prepare wrote.
        adapter: A directory with pytorch_lora_weights.safetensors, as diffusers loads it.
        metrics: Hours, images, steps, and the worst honest cosine; MLflow has each step.
    """
    from pathlib import Path

    from marble_core import stages

    for name, value in stages.train(Path(prepared.path), Path(adapter.path)).items():
        metrics.log_metric(name, value)
