"""A run's page in Kubeflow, for its tags and its description in MLflow and for the pages that a stage writes."""

from __future__ import annotations

import os

from marble_core.runtime.environment import KFP_RUN, KUBEFLOW_PAGE

RUN_TAG = "marble.kubeflow_run"  # the run's id in Kubeflow: of the newest one, where several went on with one run


def kubeflow_page() -> str:
    """Its address; empty outside of Kubeflow, and where the settings do not say where Kubeflow's pages are."""
    run, pages = os.environ.get(KFP_RUN), os.environ.get(KUBEFLOW_PAGE)
    return f"{pages}#/runs/details/{run}" if run and pages else ""


def kubeflow_tags() -> dict[str, str]:
    tags = {RUN_TAG: os.environ.get(KFP_RUN, ""), "marble.kubeflow_page": kubeflow_page()}
    return {name: value for name, value in tags.items() if value}


def described(*paragraphs: str) -> str:
    """A run's description in MLflow, as Markdown: the first paragraph, the link to Kubeflow, the others."""
    link = f"[Run in Kubeflow]({kubeflow_page()})" if kubeflow_page() else ""
    return "\n\n".join(filter(None, (*paragraphs[:1], link, *paragraphs[1:])))
