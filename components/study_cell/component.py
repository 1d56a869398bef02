"""Train one arm of a study with one seed, and evaluate it."""

from kfp import dsl

from marble_kubeflow.components import image


@dsl.component(base_image=image("train"), packages_to_install=[], install_kfp_package=False)
def study_cell(
    study: str,
    name: str,
    arm: str,
    seed: str,
    directory: str,
    gpus: str,
    accelerator: str,
    cell: dsl.Output[dsl.Dataset],
) -> str:
    """Make one cell of a study. One that is finished on S3 is fetched and not made again.

    Args:
        study: The study's file as JSON.
        name: The study's name, which leads to its files on S3.
        arm: The arm.
        seed: The seed, a whole number.
        directory: Where it trains; empty in a pod, which has a place of its own.
        gpus: The pod's GPUs.
        accelerator: The resource that they are.
        cell: The finished cell as JSON.

    Returns:
        A sentence: made now, or finished before.
    """
    from pathlib import Path

    from marble_core import study_stages

    return study_stages.study_cell(study, name, arm, int(seed), directory, Path(cell.path))
