"""Hold the cells of a study against each other, on one page."""

from kfp import dsl

from marble_kubeflow.components import image


@dsl.component(base_image=image("register"), packages_to_install=[], install_kfp_package=False)
def study_report(
    study: str,
    name: str,
    made: list,
    page: dsl.Output[dsl.HTML],
    tables: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Read the study's cells from S3, and write its page and tables.

    Args:
        study: The study's file as JSON.
        name: The study's name, which leads to its files on S3.
        made: A sentence of each cell, for which this waits.
        page: Tables, curves and alarms of all arms as one HTML page.
        tables: The tables as JSON.
        metrics: The mean gain of each arm over the base.
    """
    from pathlib import Path

    from marble_core import study_stages

    print("\n".join(made))
    for arm, gain in study_stages.study_report(study, name, Path(page.path), Path(tables.path)).items():
        metrics.log_metric(arm, gain)
