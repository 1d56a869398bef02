"""A run with a blind vote, and files of votes as a voter's browser hands them out."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from marble_core.config.schema import RunConfig
from marble_core.evaluation.decision_file import write_decision
from marble_core.evaluation.gate import decide
from marble_core.evaluation.results import Evaluation
from marble_core.report import write_pages
from report_builders import a_config, evaluated, write_history, write_pictures

Choice = Callable[[str, str], str]  # (prompt, the rival's role) -> the role that is chosen; empty: neither


def voted_config(share: float | None) -> RunConfig:
    config = a_config()
    return config.model_copy(update={"registry": config.registry.model_copy(update={"votes": share})})


def lay_out_vote(
    runs: Path,
    name: str = "monday",
    share: float | None = None,
    champion: bool = False,
    evaluation: Evaluation | None = None,
    per_source: int = 14,
    config: RunConfig | None = None,
    links: Mapping[str, str] | None = None,
) -> Path:
    """The directory that evaluate leaves of a run below ``runs``, with all its pages."""
    config, found = config or voted_config(share), evaluation or evaluated()
    here, adapter = (runs / name / "artifacts" / "marble-1" / stage for stage in ("evaluate/evaluation", "train/adapter"))
    for directory in (here, adapter):
        directory.mkdir(parents=True)
    found.save(here / "evaluation.json")
    (here / "config.json").write_text(config.to_json())
    history = write_history(adapter / "history.jsonl", 6)
    roles = ("base", "champion", "trained") if champion else ("base", "trained")
    write_pictures(here / "images", per_source=per_source, roles=roles)
    decision = decide(found, config.registry)
    write_decision(here, decision, config.registry)
    write_pages(here, found, decision, history, config, [], name, links or {})
    return here


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def role_of(image: dict[str, str], here: Path) -> str:
    """Whose image it is, by its bytes alone."""
    shown = base64.b64decode(image["uri"].partition(",")[2])
    (file,) = [path for path in (here / "images").glob("*.png") if path.read_bytes() == shown]
    return file.name.partition("-")[0]


def votes_of(here: Path, voter: str, choose: Choice, first: int = 0, last: int | None = None) -> dict[str, Any]:
    data = data_of(here / "vote.html")
    votes = []
    for pair in data["pairs"][first:last]:
        roles = {role_of(image, here): image["id"] for image in pair["images"]}
        (rival,) = set(roles) - {"trained"}
        votes.append({"pair": pair["id"], "chosen": roles.get(choose(pair["prompt"], rival), "")})
    return {"format": 1, "ballot": data["ballot"], "run": data["run"], "voter": voter, "votes": votes}


def write_votes(path: Path, votes: dict[str, Any]) -> Path:
    path.write_text(json.dumps(votes), encoding="utf-8")
    return path
