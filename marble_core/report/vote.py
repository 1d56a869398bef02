"""vote.html: which of two images is better, asked of people who do not know which model made which.

The page names images by the ballot's digests (evaluation/votes.py) and draws order and side anew each time it is opened. It fetches
nothing, stores nothing, and hands its votes out as a file, or as text to copy where a frame forbids downloads.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from marble_core.evaluation.votes import Ballot
from marble_core.report.images import encode
from marble_core.report.rendering import render

SIZES = (512, 384, 320, 256, 192, 128)
BYTES = 4_500_000  # of encoded images


def write_vote(path: Path, ballot: Ballot, images: Path) -> None:
    """Write the page, at most 5 MB. ``images`` is what run_evaluation wrote."""
    shown = {one: images / file for pair in ballot.pairs.values() for one, file in pair.files.items()}
    uris = encode(list(shown.values()), SIZES, BYTES)
    pairs = [
        {"id": pair.id, "prompt": pair.prompt, "images": [{"id": one, "uri": uris[shown[one]]} for one in pair.files]}
        for pair in ballot.pairs.values()
    ]
    data = {"ballot": ballot.id, "run": ballot.run, "pairs": pairs}
    page = render(
        "vote.html.j2",
        run=ballot.run,
        script=files("marble_core.report").joinpath("vote.js").read_text(encoding="utf-8"),
        data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    )
    path.write_text(page, encoding="utf-8")
