"""Register the trained adapter as a version of the model."""

from kfp import dsl

from marble_kubeflow.components import image


@dsl.component(base_image=image("register"), packages_to_install=[], install_kfp_package=False)
def register(prepared: dsl.Input[dsl.Dataset], adapter: dsl.Input[dsl.Model], evaluation: dsl.Input[dsl.Dataset]) -> str:
    """Make the adapter the next version in MLflow's model registry.

    Args:
        prepared: The directory that prepare wrote.
        adapter: The directory that train wrote.
        evaluation: The directory that evaluate wrote.

    Returns:
        The version.
    """
    from pathlib import Path

    from marble_core import stages

    return stages.register(Path(prepared.path), Path(adapter.path), Path(evaluation.path))
