"""The evaluation on several processes, which share the prompts. The evaluate stage starts them by torchrun, one per GPU:

torchrun --nproc_per_node 8 -m marble_core.training.launch_evaluation PREPARED ADAPTER OUT INCUMBENT

INCUMBENT is a JSON file with the champion to compare with (evaluation/results.py). What is cut off is evaluated anew.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from marble_core.evaluation.results import Incumbent
from marble_core.runtime.child_process import end_with_the_parent
from marble_core.training.launch import run_on
from marble_core.training.process_errors import recorded


def evaluate_on(count: int, prepared: Path, adapter: Path, out: Path, incumbent: Incumbent, scratch: Path) -> None:
    """``run_evaluation`` on the held-out prompts of ``prepared``, in this process or in ``count`` others. Raises as ``run_on``."""
    if count == 1:
        _evaluate(prepared, adapter, out, incumbent)
        return
    file = scratch / "incumbent.json"
    file.write_text(json.dumps(asdict(incumbent), default=str), encoding="utf-8")
    run_on(count, __name__, [prepared, adapter, out, file], out, "evaluation", "")


def _evaluate(prepared: Path, adapter: Path, out: Path, incumbent: Incumbent) -> None:
    from marble_core.config.stage_files import HELD_OUT_PROMPTS, read_prepared
    from marble_core.evaluation.run import run_evaluation
    from marble_core.prompts import read_prompts

    config, _ = read_prepared(prepared)
    run_evaluation(config, read_prompts(prepared / HELD_OUT_PROMPTS), adapter, out, incumbent)


def main(prepared: str, adapter: str, out: str, incumbent: str) -> None:
    """One of the processes."""
    end_with_the_parent()

    from marble_core.runtime import distributed
    from marble_core.runtime.certificates import trust_private_roots
    from marble_core.runtime.mlflow_server import settle
    from marble_core.runtime.noise import quieten

    quieten()
    settle()
    trust_private_roots()
    told = json.loads(Path(incumbent).read_bytes())
    champion = Incumbent(**told | {"adapter": Path(told["adapter"]) if told["adapter"] else None})
    with recorded(out), distributed.processes():
        _evaluate(Path(prepared), Path(adapter), Path(out), champion)


if __name__ == "__main__":
    main(*sys.argv[1:])
