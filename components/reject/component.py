"""Record why the trained model was refused."""

from kfp import dsl

from marble_kubeflow.components import image


@dsl.component(base_image=image("register"), packages_to_install=[], install_kfp_package=False)
def reject(prepared: dsl.Input[dsl.Dataset], evaluation: dsl.Input[dsl.Dataset]) -> str:
    """Note the refusal and its reasons in the MLflow run.

    Args:
        prepared: The directory that prepare wrote.
        evaluation: The directory that evaluate wrote.

    Returns:
        The reason, in words.
    """
    from pathlib import Path

    from marble_core import stages

    return stages.reject(Path(prepared.path), Path(evaluation.path))
