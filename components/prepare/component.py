"""Check the configuration, read the prompts and hold some out."""

from typing import NamedTuple

from kfp import dsl

from marble_kubeflow.components import image


@dsl.component(base_image=image("prepare"), packages_to_install=[], install_kfp_package=False)
def prepare(
    preset: str,
    rehearse: str,
    base_model: str,
    prompts: str,
    held_out: str,
    rewards: str,
    method: str,
    steps: str,
    gpus: str,
    evaluation_gpus: str,
    seed: str,
    run_id: str,
    start_from: str,
    new_prompts: str,
    gate_margin: str,
    bucket: str,
    registered_model: str,
    config: str,
    name: str,
    prepared: dsl.Output[dsl.Dataset],
    data_report: dsl.Output[dsl.HTML],
) -> NamedTuple(  # type: ignore[valid-type]
    "Wanted",
    [(n, str) for n in "run gpus evaluation_gpus train_cpu train_memory evaluate_cpu evaluate_memory".split()],  # noqa: SIM905
):
    """Check everything that can be checked without a GPU. Returns the run id, and what the pods of train and evaluate ask for.

    Args:
        name: Of the run in Kubeflow, which the run in MLflow gets where no run id is given.
        prepared: config.json, run.json, train.jsonl, evaluation.jsonl, watched.jsonl and data_report.json.
        data_report: One HTML page on the prompts: counts, lengths, tags, examples, what was dropped and what is cut.
    """
    from pathlib import Path

    from marble_core import stages

    form = {
        "rehearse": rehearse,
        "base_model": base_model,
        "prompts": prompts,
        "held_out": held_out,
        "rewards": rewards,
        "method": method,
        "steps": steps,
        "gpus": gpus,
        "evaluation_gpus": evaluation_gpus,
        "seed": seed,
        "start_from": start_from,
        "new_prompts": new_prompts,
        "gate_margin": gate_margin,
        "bucket": bucket,
        "registered_model": registered_model,
        "config": config,
    }
    return stages.prepare(preset, [], run_id, Path(prepared.path), Path(data_report.path), form, name)
