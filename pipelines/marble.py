"""The pipeline: prepare -> train -> evaluate -> gate -> register or reject.

``python -m pipelines.marble`` compiles it to pipelines/marble.yaml, byte for byte the same each time.
"""

from pathlib import Path

from kfp import compiler, dsl

from components.evaluate.component import evaluate
from components.gate.component import gate
from components.prepare.component import prepare
from components.register.component import register
from components.reject.component import reject
from components.train.component import train

PACKAGE = Path(__file__).with_suffix(".yaml")


@dsl.pipeline(name="marble", description="Fine-tune a model on several rewards at once; register it if none was lost.")
def marble(preset: str = "demo", config: str = "[]", run_id: str = "") -> None:
    """From prompts to a registered model.

    Args:
        preset: The preset that the configuration starts from.
        config: A JSON list of overrides, each "section.key=value". (As text: numbers in a struct would become floats.)
        run_id: The name of the run; empty for a new one. A run that exists goes on from its newest checkpoint.
    """
    prepared = prepare(preset=preset, config=config, run_id=run_id)
    trained = train(prepared=prepared.outputs["prepared"])
    adapter = trained.outputs["adapter"]
    evaluated = evaluate(prepared=prepared.outputs["prepared"], adapter=adapter)
    evaluation = evaluated.outputs["evaluation"]
    # kfp.local skips a plain If on a named output without a word: hence one return value, and both branches.
    passed = gate(evaluation=evaluation)
    with dsl.If(passed.output == True, name="passed"):  # kfp needs the comparison
        registered = register(prepared=prepared.outputs["prepared"], adapter=adapter, evaluation=evaluation)
    with dsl.Else(name="refused"):
        rejected = reject(prepared=prepared.outputs["prepared"], evaluation=evaluation)
    for task in (prepared, trained, evaluated, passed, registered, rejected):
        task.set_caching_options(False)  # a nightly run with the same parameters must not be a cache hit


def compile_to(path: Path = PACKAGE) -> Path:
    compiler.Compiler().compile(marble, str(path))
    return path


if __name__ == "__main__":
    print(compile_to())
