"""What a stage's log on a cluster says: plain lines, seldom enough to be read, and a sentence at the end."""

import os
import subprocess
import sys
from pathlib import Path

from marble_core.runtime.progress_lines import Lines

STAGE = """
import logging, sys, warnings
from marble_core.runtime import progress
from marble_core.types import MarbleError
with progress.stage("train"):
    progress.emit("train", note="a note")
    logging.getLogger("transformers.utils.import_utils").warning("`CLIPImageProcessor` requires torchvision, and more")
    logging.getLogger("transformers.utils.import_utils").warning("something else")
    warnings.warn("Already found a `peft_config` attribute in the model. This will lead to something.")
    for step in (1, 2, 3, 4):
        progress.emit("train", step, 4, metrics={"reward/ocr/mean": 0.5, "cosine/worst": 0.25})
    if sys.argv[1:]:
        raise {"MarbleError": MarbleError, "RuntimeError": RuntimeError}[sys.argv[1]](sys.argv[2])
"""


SENTENCE = "The reward needs a wheel: install it."


def log_of(directory: Path, *arguments: str) -> tuple[str, int]:
    environment = {key: value for key, value in os.environ.items() if key != "MARBLE_PROGRESS"}
    environment["ARGO_PROGRESS_FILE"] = str(directory / "argo")
    done = subprocess.run(
        [sys.executable, "-c", STAGE, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout, done.returncode


def test_without_a_display_each_event_is_a_line_and_counts_without_news_are_seldom(tmp_path: Path) -> None:
    said, code = log_of(tmp_path)
    assert code == 0 and said.splitlines() == [
        "train  started",
        "train  a note",
        "something else",
        "train 1/4  ocr 0.5  worst cosine +0.250",
        "train 4/4  ocr 0.5  worst cosine +0.250  [0 s left]",
        "train  finished",
    ]
    assert (tmp_path / "argo").read_text() == "4/4\n"


def test_a_refusal_ends_the_log_with_its_sentence_and_a_bug_with_its_traceback(tmp_path: Path) -> None:
    said, code = log_of(tmp_path, "MarbleError", SENTENCE)
    assert code == 1 and said.splitlines()[-1] == SENTENCE and "Traceback" not in said
    said, code = log_of(tmp_path, "RuntimeError", SENTENCE)
    assert code == 1 and "Traceback" in said and said.splitlines()[-1].startswith("RuntimeError")


def test_the_traceback_of_a_bug_has_no_login_of_an_address_in_it(tmp_path: Path) -> None:
    said, code = log_of(tmp_path, "RuntimeError", "API request to http://someone:hunter2@127.0.0.1:9/api failed")
    assert code == 1 and said.splitlines()[-1] == "RuntimeError: API request to http://127.0.0.1:9/api failed"
    assert "hunter2" not in said


def test_a_count_is_written_once_per_pause_unless_it_is_the_last_or_has_news() -> None:
    lines = Lines(10.0)
    events = [(0.0, 1, ""), (4.0, 2, ""), (9.0, 3, "a fault"), (12.0, 4, "a fault"), (19.5, 5, "a fault"), (20.0, 6, "a fault")]
    made = [lines.line({"time": t, "stage": "train", "done": n, "total": 6, "note": note}) for t, n, note in events]
    assert [line.split()[1] for line in made if line] == ["1/6", "3/6", "5/6", "6/6"]
