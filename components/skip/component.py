"""Record a run that had nothing to train on."""

from kfp import dsl

from marble_kubeflow.components import image


@dsl.component(base_image=image("register"), packages_to_install=[], install_kfp_package=False)
def skip(prepared: dsl.Input[dsl.Dataset]) -> str:
    """Note in the MLflow run that no prompt is new since the champion.

    Args:
        prepared: The directory that prepare wrote.

    Returns:
        The reason, in words.
    """
    from pathlib import Path

    from marble_core import stages

    return stages.skip(Path(prepared.path))
