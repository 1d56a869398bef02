"""Compare base and trained model on held-out prompts, and decide."""

from kfp import dsl

from marble_kubeflow.components import image


@dsl.component(base_image=image("evaluate"), packages_to_install=[], install_kfp_package=False)
def evaluate(
    gpus: str,
    accelerator: str,
    prepared: dsl.Input[dsl.Dataset],
    adapter: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Sample both models on the same prompts with the same noise, score them, and decide whether the model may be registered.

    Args:
        gpus: The pod's GPUs, as prepare hands them on: 0 where there is nothing to do.
        accelerator: The resource that they are.
        prepared: The directory that prepare wrote.
        adapter: The directory that train wrote.
        evaluation: evaluation.json, decision.json and the images.
        metrics: The gain and each reward's, in standard deviations of the base.
        report: One HTML page with images before and after, and curves.
    """
    from pathlib import Path

    from marble_core import stages

    paths = [Path(artifact.path) for artifact in (prepared, adapter, evaluation, report)]
    for name, value in stages.evaluate(*paths).items():
        metrics.log_metric(name, value)
