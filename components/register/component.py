"""Register the trained adapter as a version of the model, or say why not."""

from kfp import dsl

from marble_kubeflow.components import image


@dsl.component(base_image=image("register"), packages_to_install=[], install_kfp_package=False)
def register(
    prepared: dsl.Input[dsl.Dataset],
    adapter: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
) -> str:
    """Do what evaluate decided: make the adapter the next version in MLflow's model registry, or record why not.

    Args:
        prepared: The directory that prepare wrote.
        adapter: The directory that train wrote.
        evaluation: The directory that evaluate wrote.
        metrics: promoted, 1 where the model is the champion now and else 0, and the gain that decided.
        page: The decision and its reasons as one HTML page.

    Returns:
        The version; empty where none was made.
    """
    from pathlib import Path

    from marble_core import stages

    outcome = stages.register(*(Path(artifact.path) for artifact in (prepared, adapter, evaluation, page)))
    for name, value in outcome.metrics.items():
        metrics.log_metric(name, value)
    return outcome.version
