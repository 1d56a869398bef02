"""The pipeline, one straight line: prepare -> train -> evaluate -> register. Nothing in it is conditional: each layer of a graph
costs KFP a pod and hides the stages on its page. register does what evaluate decided; where prepare finds nothing new to train on, the
stages behind it get no GPU, end at once and say so.

One definition for the laptop, for containers and for a cluster. ``python -m marble_kubeflow.pipelines.marble`` compiles it
with the default settings to pipelines/marble.yaml, byte for byte the same each time.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfp import compiler, dsl

from marble_core.config.pipeline_parameters import descriptions
from marble_kubeflow.components.evaluate.component import evaluate
from marble_kubeflow.components.prepare.component import prepare
from marble_kubeflow.components.register.component import register
from marble_kubeflow.components.train.component import train
from marble_kubeflow.pipelines.form import complete
from marble_kubeflow.pipelines.pods import give_gpus, place, workflow
from marble_kubeflow.pipelines.settings import Settings

PACKAGE = Path(__file__).with_suffix(".yaml")


def _with_form(pipeline: Callable[..., None]) -> Callable[..., None]:
    """KFP takes what its form says of each parameter from the docstring."""
    said = descriptions()
    arguments = "".join(f"\n    {name}: {said[name]}" for name in inspect.signature(pipeline).parameters)
    pipeline.__doc__ = f"{pipeline.__doc__}\n\nArgs:{arguments}\n"
    return pipeline


def build(settings: Settings) -> Any:
    """The pipeline with these settings; over 60 lines because KFP compiles one function, whose parameters are the form."""
    about = "Fine-tune a model on several rewards at once; register it if none was lost."

    @dsl.pipeline(name="marble", description=about, pipeline_config=workflow(settings))
    @_with_form
    def marble(
        preset: str = "demo",
        rehearse: str = "no",
        base_model: str = "",
        prompts: str = "",
        held_out: str = "",
        rewards: str = "",
        method: str = "",
        steps: str = "",
        gpus: str = "",
        evaluation_gpus: str = "",
        accelerator: str = "nvidia.com/gpu",
        seed: str = "",
        run_id: str = "",
        start_from: str = "",
        new_prompts: str = "preset",
        gate_margin: str = "",
        bucket: str = "",
        registered_model: str = "",
        config: str = "",
    ) -> None:
        """From prompts to a registered model."""
        prepared = prepare(
            preset=preset,
            rehearse=rehearse,
            base_model=base_model,
            prompts=prompts,
            held_out=held_out,
            rewards=rewards,
            method=method,
            steps=steps,
            gpus=gpus,
            evaluation_gpus=evaluation_gpus,
            seed=seed,
            run_id=run_id,
            start_from=start_from,
            new_prompts=new_prompts,
            gate_margin=gate_margin,
            bucket=bucket,
            registered_model=registered_model,
            config=config,
            name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
        )
        data, wanted = prepared.outputs["prepared"], [prepared.outputs[name] for name in ("gpus", "evaluation_gpus")]
        trained = train(gpus=wanted[0], accelerator=accelerator, prepared=data)
        adapter = trained.outputs["adapter"]
        evaluated = evaluate(gpus=wanted[1], accelerator=accelerator, prepared=data, adapter=adapter)
        registered = register(prepared=data, adapter=adapter, evaluation=evaluated.outputs["evaluation"])
        give_gpus(trained, wanted[0], accelerator, settings)
        give_gpus(evaluated, wanted[1], accelerator, settings)
        for task in (prepared, registered):
            place(task, task.name, settings)
        for task in (trained, evaluated):
            asked = {kind: prepared.outputs[f"{task.name}_{kind}"] for kind in ("cpu", "memory")}
            place(task, task.name, settings, asked)

    return marble


def compile_to(path: Path = PACKAGE, settings: Settings | None = None) -> Path:
    pipeline = build(settings := settings or Settings())
    complete(pipeline, settings)
    compiler.Compiler().compile(pipeline, str(path))
    return path


if __name__ == "__main__":
    print(compile_to())
