"""Delete what a run has left in Kubernetes."""

from kfp import dsl

from marble_kubeflow.components import image


@dsl.component(base_image=image("train"), packages_to_install=[], install_kfp_package=False)
def cleanup() -> str:
    """Delete the TrainJobs of this run, whose training on several nodes nobody waits for any more.

    Returns:
        Their names; nothing where there are none, or no cluster.
    """
    from marble_core import stages

    return stages.cleanup()
