"""decision.json: what evaluate decided, for whoever acts on it or shows it.

The file says by which bytes it was decided: digests of evaluation.json and of the section ``registry``. Where one of them is
another now, the gate decides anew, and whoever asked is told.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from marble_core.config.formats import DECISION
from marble_core.config.schema import RegistryConfig
from marble_core.config.stage_files import DECISION_FILE, EVALUATION
from marble_core.evaluation.gate import NOTHING_NEW, REHEARSED, Decision, decide, rehearsed
from marble_core.evaluation.results import Evaluation
from marble_core.runtime.files import replace_text
from marble_core.types import MarbleError


def write_decision(directory: Path, decision: Decision, registry: RegistryConfig) -> None:
    """Beside the evaluation.json that it was made of; of a run with nothing new to train on there is none."""
    said = {"promote": decision.promote, "verdict": decision.verdict, "reasons": decision.reasons}
    text = json.dumps(DECISION.stamp(said | _digests(directory, registry)), indent=2, ensure_ascii=False)
    replace_text(directory / DECISION_FILE, text + "\n")


def read_decision(directory: Path, registry: RegistryConfig) -> tuple[Decision, Evaluation | None, str]:
    """The decision, the evaluation, and why it was decided anew: empty where it is the one that evaluate wrote.

    A rehearsal's decision stays one. There is no evaluation where there was nothing new to train on. Raises MarbleError where the directory is not what evaluate wrote.
    """
    written = _written(directory)
    if written is None:
        return _anew(directory, registry, "there is no decision.json beside it")
    decision, digests = written
    now = _digests(directory, registry)
    changed = [name for key, name in (("evaluation", EVALUATION), ("registry", "registry")) if digests[key] != now[key]]
    if changed:
        found, evaluation, why = _anew(directory, registry, f"{' and '.join(changed)} changed since evaluate decided")
        return rehearsed(found) if decision.verdict == REHEARSED else found, evaluation, why
    return decision, None if decision.verdict == NOTHING_NEW else Evaluation.load(directory / EVALUATION), ""


def _anew(directory: Path, registry: RegistryConfig, why: str) -> tuple[Decision, Evaluation, str]:
    evaluation = Evaluation.load(directory / EVALUATION)
    return decide(evaluation, registry), evaluation, f"Decided anew: {why}."


def _written(directory: Path) -> tuple[Decision, dict[str, str]] | None:
    file = directory / DECISION_FILE
    if not file.exists():
        return None
    try:
        tree = DECISION.upgrade(json.loads(file.read_bytes()), file)
        return Decision(tree["promote"], tree["verdict"], tuple(tree["reasons"])), {
            k: tree[k] for k in ("evaluation", "registry")
        }
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        raise MarbleError(f"{file} is not what evaluate wrote; run the evaluate stage again.") from None


def _digests(directory: Path, registry: RegistryConfig) -> dict[str, str]:
    file = directory / EVALUATION
    texts = {"evaluation": file.read_bytes() if file.exists() else b"", "registry": registry.model_dump_json().encode()}
    return {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}
