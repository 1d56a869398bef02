"""Check the configuration, read the prompts and hold some out."""

from kfp import dsl

from components import image


@dsl.component(base_image=image("prepare"), packages_to_install=[], install_kfp_package=False)
def prepare(preset: str, config: str, run_id: str, prepared: dsl.Output[dsl.Dataset], data_report: dsl.Output[dsl.HTML]) -> str:
    """Check everything that can be checked without a GPU.

    Args:
        preset: The preset that the configuration starts from.
        config: A JSON list of overrides, each "section.key=value".
        run_id: The name of the run; empty for a new one. A run that exists goes on.
        prepared: config.json, run.json, train.jsonl, evaluation.jsonl and data_report.json.
        data_report: One HTML page on the prompts: counts, lengths, tags, examples, what was dropped and what is cut.

    Returns:
        The run id.
    """
    import json
    from pathlib import Path

    from marble_core import stages

    return stages.prepare(preset, json.loads(config), run_id, Path(prepared.path), Path(data_report.path))
