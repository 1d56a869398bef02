"""A study as a pipeline: a loop over its cells, each a pod of its own, and the page on all of them behind it.

A cell's pod has what train's has, and the report's what register's has (pods.py). What is finished on S3 is not made again, so a run
that failed goes on when the same file is submitted again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import compiler, dsl

from marble_core.types import MarbleError
from marble_kubeflow.components.study_cell.component import study_cell
from marble_kubeflow.components.study_report.component import study_report
from marble_kubeflow.pipelines.package import LARGEST
from marble_kubeflow.pipelines.pods import give_gpus, place, workflow
from marble_kubeflow.pipelines.settings import Settings


@dataclass(frozen=True)
class Plan:
    """A study: its name, its file's content ready for JSON, its cells by (arm, seed), and the GPUs of each.

    ``at_once``: cells at a time; 0: as many as Kubeflow starts. ``directory``: where they train; empty in pods of their own.
    """

    name: str
    file: Mapping[str, Any]
    cells: Sequence[tuple[str, int]]
    gpus: int = 0
    at_once: int = 0
    directory: str = ""

    @property
    def text(self) -> str:
        """The file as JSON that nothing on its way changes: Argo and KFP resolve {{...}}, the kubelet $(...), kfp.local python3."""
        text = json.dumps(self.file)
        for sought, written in (("{{", r"{\u007b"), ("$", r"\u0024"), ("python3", r"python\u0033")):
            text = text.replace(sought, written)  # between JSON's own marks none of them can stand
        if len(text) > LARGEST:
            raise MarbleError(
                f"The study {self.name} has {len(text) / 1000:.0f} kB and Kubernetes takes {LARGEST // 1000}: put prompts into files."
            )
        return text


def build(plan: Plan, settings: Settings, by_file: bool = False) -> Any:
    """``by_file``: the stages read the study from a file (study_stages.handed_over), where parameters stand on command lines."""
    text = "" if by_file else plan.text
    items = [{"arm": arm, "seed": str(seed)} for arm, seed in plan.cells]
    about = f"The study {plan.name}: {', '.join(dict.fromkeys(arm for arm, _ in plan.cells))}. {len(items)} cells."

    @dsl.pipeline(name="marble-study", description=about, pipeline_config=workflow(settings))
    def marble_study(
        name: str = plan.name, gpus: str = str(plan.gpus), accelerator: str = settings.gpu.resource or "nvidia.com/gpu"
    ) -> None:
        """Several settings, several seeds, one page.

        Args:
            name: The study's name, which leads to its files on S3: s3://BUCKET/studies/NAME. Another name begins anew.
            gpus: GPUs of each cell.
            accelerator: The resource that they are.
        """
        with dsl.ParallelFor(items=items, parallelism=plan.at_once or None) as cell:
            made = study_cell(
                study=text,
                name=name,
                arm=cell.arm,
                seed=cell.seed,
                directory=plan.directory,
                gpus=gpus,
                accelerator=accelerator,
            )
            give_gpus(made, gpus, accelerator, settings)
            place(made, made.name, settings)
        report = study_report(study=text, name=name, made=dsl.Collected(made.outputs["Output"]))
        place(report, report.name, settings)

    return marble_study


def compile_to(path: Path, plan: Plan, settings: Settings | None = None) -> Path:
    compiler.Compiler().compile(build(plan, settings or Settings()), str(path))
    return path
