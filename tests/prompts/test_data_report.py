"""The report of prepared prompts, as JSON and as one page."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from marble_core import stages
from marble_core.prompts import read_prompts
from marble_core.prompts.data_report import write_page
from prompt_files import prepared


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.said: list[str] = []
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.said.append(data)


@pytest.mark.services
def test_prepare_writes_the_checked_prompts_the_report_and_one_page_that_fetches_nothing(
    services: dict[str, str], tmp_path: Path, model: Path
) -> None:
    evil = '<script>alert("x")</script> & <img src=x>'
    (tmp_path / "p.txt").write_text(f"{evil}\na cat\na CAT\n{'the ' * 100}")
    overrides = [f"model.path={model}", f"data.train.general={tmp_path / 'p.txt'}"]
    overrides += [f"data.{name}.geneval=generate://geneval" for name in ("train", "evaluation")]
    out, html = tmp_path / "prepared", tmp_path / "page" / "data.html"
    overrides += [
        "data.train.ocr=null",
        "rewards=[{name: clipscore}, {name: geneval}]",
        "data.train_size=170",
        "data.evaluation_size=6",
    ]
    stages.prepare("demo", overrides, "r", out, html)
    report = json.loads((out / "data_report.json").read_text())
    general = report["train"]["general"]
    assert general["examples"][0] == evil and (general["read"], general["prompts"]) == (4, 3)
    assert report["train"]["geneval"]["tags"] == {
        "position": 70,
        "counting": 50,
        "color_attr": 30,
        "colors": 10,
        "two_object": 10,
    }
    assert len(read_prompts(out / "train.jsonl")) == 3 + 170 and len(read_prompts(out / "evaluation.jsonl")) == 18
    page = Page(html.read_text(encoding="utf-8"))
    assert evil in page.said and not {"script", "img", "link"} & set(page.tags) and page.outside == []
    said = " ".join(" ".join(page.said).split())
    for part in (
        "general: 3 prompts",
        "dropped as repeated 1, as blocked 0",
        "position 70",
        "the model reads the first 77",
        "line 4 (102)",
    ):
        assert part in said, part


def test_report_and_page_of_many_dropped_prompts_stay_small(tmp_path: Path) -> None:
    data = prepared(tmp_path, "a cat\n" * 20_000)
    assert data.report["train"]["general"]["repeated"]["count"] == 19_999
    assert len(json.dumps(data.report)) < 100_000
    write_page(tmp_path / "page.html", data.report)
    text = (tmp_path / "page.html").read_text()
    assert len(text) < 100_000 and "and 19799 more" in text


def test_one_prompt_is_spoken_of_in_the_singular_and_a_length_that_all_have_is_said_once(tmp_path: Path) -> None:
    data = prepared(tmp_path, f"a cat\na cat\na nude\n{'very ' * 80}long\n")
    of = f"1 general prompt of train ({tmp_path / 'train.txt'})"
    assert [said.partition(": ")[0] for said in data.warnings] == [
        f"{of} holds blocked words and was dropped",
        f"{of} came before and was dropped",
        f"{of} has more than 16 CLIP tokens and is cut",
    ]
    write_page(tmp_path / "page.html", data.report)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "1 per prompt; the model reads at most 1" in page.said, "the demo's T5 reads one token, and each prompt has it"


def test_preparing_prompts_imports_no_torch(tmp_path: Path) -> None:
    code = """
import sys
from marble_core.config.loading import load_config
from marble_core.prompts.dataset import prepare_data
from marble_core.prompts.data_report import write_page
import marble_core.stages
prepare_data(load_config("demo", overrides=["data.train.ocr=generate://ocr"]))
print({"torch", "transformers", "scipy", "PIL", "pyarrow"} & set(sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
