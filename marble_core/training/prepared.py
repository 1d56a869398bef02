"""The directory that prepare writes for the stages behind it. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import CONFIG, DATA_REPORT, HELD_OUT_PROMPTS, RUN, TRAIN_PROMPTS, WATCHED_PROMPTS
from marble_core.prompts import write_jsonl
from marble_core.runtime.environment import OVERRIDES
from marble_core.types import Prompt

if TYPE_CHECKING:
    from marble_core.prompts.dataset import Data


def handed_over() -> list[str]:
    """The overrides of a run on this machine, from the file that OVERRIDES names: every user of the machine reads command lines."""
    file = os.environ.get(OVERRIDES)
    return list(json.loads(Path(file).read_text(encoding="utf-8"))) if file else []


def write_prepared(
    out: Path, config: RunConfig, run_id: str, said: Sequence[str], prompts: Sequence[Prompt], data: Data
) -> None:
    """``said`` is what the user should know of where the ``prompts`` to train on come from, or why there are none."""
    (out / CONFIG).write_text(config.to_json(), encoding="utf-8")
    run = {"run_id": run_id, "notes": said, "nothing_new": "" if prompts else " ".join(said)}
    (out / RUN).write_text(json.dumps(run), encoding="utf-8")
    for name, own in {TRAIN_PROMPTS: prompts, HELD_OUT_PROMPTS: data.evaluation, WATCHED_PROMPTS: data.watched}.items():
        write_jsonl(out / name, own)
    (out / DATA_REPORT).write_text(json.dumps(data.report, indent=2, ensure_ascii=False), encoding="utf-8")
