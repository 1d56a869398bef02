"""Decide whether the trained model may be registered."""

from kfp import dsl

from marble_kubeflow.components import image


@dsl.component(base_image=image("register"), packages_to_install=[], install_kfp_package=False)
def gate(evaluation: dsl.Input[dsl.Dataset]) -> bool:
    """Refuse a model that lost on a reward (registry.margin).

    Args:
        evaluation: The directory that evaluate wrote.

    Returns:
        Whether the model may be registered.
    """
    from pathlib import Path

    from marble_core import stages

    return stages.gate(Path(evaluation.path))
