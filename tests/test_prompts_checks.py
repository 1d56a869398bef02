"""From a configuration to checked prompts: repeated, blocked, leaked and over-long ones, and the report of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from marble_core import stages
from marble_core.config.loading import load_config
from marble_core.config.schema import ModelConfig
from marble_core.prompts import read_prompts
from marble_core.prompts.data_report import write_page
from marble_core.prompts.dataset import Data, prepare_data
from marble_core.prompts.filters import check_disjoint, read_block_list, split_blocked, split_repeated
from marble_core.prompts.reading import Placed
from marble_core.prompts.token_lengths import text_encoders
from marble_core.types import MarbleError, Prompt

CLIP_BYTES = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]


def placed(*texts: str, source: str = "general") -> list[Placed]:
    return [Placed(Prompt(text, source), f"p.txt, line {number}") for number, text in enumerate(texts, 1)]


def prepared(tmp_path: Path, train: str, evaluation: str = "held out", *overrides: str) -> Data:
    """Of a general training file and a general evaluation file with these contents."""
    for name, text in (("train", train), ("evaluation", evaluation)):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    spec = [f"data.{name}={{general: {tmp_path / name}.txt, ocr: demo://prompts/ocr, geneval: demo://prompts/geneval}}" for name in
            ("train", "evaluation")]  # fmt: skip
    return prepare_data(load_config("demo", overrides=[*spec, "data.train_size=20", "data.evaluation_size=9", *overrides]))


def test_of_equal_texts_in_a_file_the_first_stays_and_the_others_are_counted(tmp_path: Path) -> None:
    assert split_repeated(placed("A cat", "a dog", "a  CAT", "a cat")) == (
        placed("A cat", "a dog"),
        [Placed(Prompt("a  CAT", "general"), "p.txt, line 3"), Placed(Prompt("a cat", "general"), "p.txt, line 4")],
    )
    lines = "A cat\na dog\na  CAT\na cat\n"
    data = prepared(tmp_path, lines)
    assert [p.text for p in data.train if p.source == "general"] == ["A cat", "a dog"]
    report = data.report["train"]["general"]
    assert (report["read"], report["prompts"], report["distinct"]) == (4, 2, 2)
    path = tmp_path / "train.txt"
    assert report["dropped_repeated"] == [f"{path}, line 3", f"{path}, line 4"]
    assert f"2 general prompts of train ({path}) came before and were dropped: {path}, line 3, {path}, line 4." in data.warnings
    kept = prepared(tmp_path, lines, "held out", "data.keep_repeated=true")
    assert len([p for p in kept.train if p.source == "general"]) == 4
    assert kept.report["train"]["general"]["distinct"] == 2 and kept.warnings == []


@pytest.mark.parametrize(
    ("text", "blocked"),
    [
        ("a Gun on a table", True),
        ("GUN", True),
        ("gun-shaped cake", True),
        ("a gunner", False),
        ("the begun work", False),
        ("a gun_shop", False),
        ("my  Evil\tEMPIRE", True),
        ("my evil little empire", False),
        ("C++ on a mug", True),
        ("C+ on a mug", False),
        ("Straße at night", True),
        ("STRASSE at night", True),
        ("a.b", True),
        ("axb", False),
    ],
)
def test_blocked_words_and_phrases_match_whole_and_in_any_case(text: str, blocked: bool) -> None:
    phrases = ["gun", "evil empire", "c++", "straße", "a.b"]
    assert split_blocked(placed(text), phrases) == (([], placed(text)) if blocked else (placed(text), []))


def test_a_block_list_applies_to_every_source_and_the_words_of_safe_for_work_to_general(tmp_path: Path) -> None:
    (tmp_path / "block.txt").write_text("# names\n\nBig Brand\n")
    (tmp_path / "signs.txt").write_text('a "big brand" sign\na nude "SIGN"\n')
    files = (f"data.block_list={tmp_path / 'block.txt'}", f"data.train.ocr={tmp_path / 'signs.txt'}")
    data = prepared(tmp_path, "a BIG  brand car\na nude\na car\n", "a bus\nporn", *files)
    assert [p.text for p in data.train if p.source == "general"] == ["a car"]
    assert [p.text for p in data.train if p.source == "ocr"] == ['a nude "SIGN"']
    assert [p.text for p in data.evaluation if p.source == "general"] == ["a bus"]
    train = tmp_path / "train.txt"
    assert data.report["train"]["general"]["blocked"] == [f"{train}, line 1", f"{train}, line 2"]
    assert f"2 general prompts of train ({train}) hold blocked words and were dropped: {train}, line 1, {train}, line 2." in (
        data.warnings
    )
    data = prepared(tmp_path, "a BIG  brand car\na nude\na car\n", "a bus\nporn", *files, "data.safe_for_work=false")
    assert [p.text for p in data.train if p.source == "general"] == ["a nude", "a car"]
    with pytest.raises(MarbleError, match=r"All 2 prompts of .*train\.txt hold blocked words; see data\.block_list"):
        prepared(tmp_path, "big brand\nBIG BRAND\n", "held out", *files)
    (tmp_path / "block.txt").write_text("# nothing\n")
    with pytest.raises(MarbleError, match=r"block\.txt holds no word"):
        read_block_list(tmp_path / "block.txt")


def test_a_held_out_prompt_that_is_trained_on_is_a_leak_named_with_both_places(tmp_path: Path) -> None:
    check_disjoint(placed("A red  Circle"), placed("a blue circle"))
    with pytest.raises(MarbleError) as error:
        prepared(tmp_path, "a car\nA red  Circle\n", "a bus\n\na red circle\na  RED circle")
    held_out, train = tmp_path / "evaluation.txt", tmp_path / "train.txt"
    said = f"The prompt 'a red circle' is both held out ({held_out}, line 3) and trained on ({train}, line 2)"
    assert str(error.value) == f"{said}; remove it from one of the two."
    with pytest.raises(MarbleError, match=r"and trained on .*, and so are 2 more; remove"):
        check_disjoint(placed("a", "b", "c", "d"), placed("C", "A", "B", "a"))


def test_what_is_generated_keeps_clear_of_the_held_out_files(tmp_path: Path) -> None:
    generated = "data.train.geneval=generate://geneval"
    first = prepared(tmp_path, "x", "held out", generated).train
    (tmp_path / "eval.jsonl").write_text("\n".join(json.dumps({"prompt": p.text, "include": p.include}) for p in first[-20:]))
    data = prepared(tmp_path, "x", "held out", generated, f"data.evaluation.geneval={tmp_path / 'eval.jsonl'}")
    assert len(data.train) == 41
    assert not {p.text for p in data.train} & {p.text for p in data.evaluation}


def test_a_uri_of_another_source_is_refused(tmp_path: Path) -> None:
    for uri in ("demo://prompts/geneval", "generate://geneval", "generate://nothing"):
        with pytest.raises(MarbleError, match=f"{uri}' cannot serve the source 'ocr'; write '.*ocr'"):
            prepared(tmp_path, "x", "y", f"data.train.ocr={uri}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's tokenizers as SD3.5 has them: two of CLIP as vocab.json and merges.txt, T5's as tokenizer.json."""
    path = tmp_path_factory.mktemp("model")
    letters = [*(chr(b) for b in CLIP_BYTES), *(chr(256 + n) for n in range(256 - len(CLIP_BYTES)))]
    merges = ["t h", "th e</w>", "a n", "an d</w>", "c a", "ca t</w>", "! !</w>", "' s</w>", "Ã ©"]
    joined = [merge.replace(" ", "") for merge in merges]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *joined, "<|startoftext|>", "<|endoftext|>"]
    index = {"_class_name": "StableDiffusion3Pipeline"}
    for part, encoder in (("", "CLIPTextModelWithProjection"), ("_2", "CLIPTextModelWithProjection"), ("_3", "T5EncoderModel")):
        (path / f"tokenizer{part}").mkdir()
        index |= {f"tokenizer{part}": ["transformers", "X"], f"text_encoder{part}": ["transformers", encoder]}
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 512 if part == "_3" else 77}
        (path / f"tokenizer{part}" / "tokenizer_config.json").write_text(json.dumps(settings))
        if part != "_3":
            (path / f"tokenizer{part}" / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
            (path / f"tokenizer{part}" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    t5 = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    t5.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t5.enable_truncation(10)
    t5.enable_padding(length=600)
    t5.save(str(path / "tokenizer_3" / "tokenizer.json"))
    (path / "model_index.json").write_text(json.dumps(index))
    return path


@pytest.fixture(scope="module")
def reference(model: Path) -> Callable[[str], Any]:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(model / "tokenizer")


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40) | st.text("the catsand'!19é\t", max_size=40))
def test_clip_tokens_are_counted_as_transformers_counts_them(model: Path, reference: Callable[[str], Any], text: str) -> None:
    clip = text_encoders(ModelConfig(path=str(model)))[0]
    assert clip.name == "CLIP" and clip.count([text]) == [len(reference(text)["input_ids"])]


def test_limits_are_the_tokenizers_own_and_for_t5_what_the_run_asks_for(model: Path) -> None:
    for asked, read in ((256, 256), (512, 512), (4096, 512)):
        found = text_encoders(ModelConfig(path=str(model), max_sequence_length=asked))
        assert [(e.name, e.limit) for e in found] == [("CLIP", 77), ("T5", read)]
        assert found[1].count(["x " * 550]) == [550]  # its own truncation and padding are off
    for elsewhere in ("nobody/has-this", "/models/of/the/trainer"):
        assert text_encoders(ModelConfig(path=elsewhere)) == []


def test_over_long_prompts_are_named_and_kept(tmp_path: Path, model: Path) -> None:
    lines = ["the cat and " * 25, "the " * 75, "the " * 76, "é" * 2000, "the cat"]  # 75 words, and a start and an end
    data = prepared(tmp_path, "\n".join(lines), "held out", f"model.path={model}", "model.max_sequence_length=60")
    train = tmp_path / "train.txt"
    assert [p.text for p in data.train if p.source == "general"] == [line.strip() for line in lines]
    assert data.report["train"]["general"]["over_long"] == [
        {"where": f"{train}, line 1", "tokens": {"T5": 75}},
        {"where": f"{train}, line 2", "tokens": {"T5": 75}},
        {"where": f"{train}, line 3", "tokens": {"CLIP": 78, "T5": 76}},
        {"where": f"{train}, line 4", "tokens": {"CLIP": 2003}},
    ]
    assert data.report["train"]["general"]["tokens"]["CLIP"] == {"limit": 77, "min": 4, "median": 77, "max": 2003}
    assert (
        f"2 general prompts of train ({train}) have more than 77 CLIP tokens and are cut: "
        f"{train}, line 3 (78), {train}, line 4 (2003)." in data.warnings
    )
    assert any(w.endswith(f"{train}, line 3 (76).") and "more than 60 T5 tokens" in w for w in data.warnings)


def test_a_broken_tokenizer_file_is_one_sentence(model: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_bytes((model / "model_index.json").read_bytes())
    (tmp_path / "tokenizer_3").mkdir()
    (tmp_path / "tokenizer_3" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer_3" / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(MarbleError) as error:
        text_encoders(ModelConfig(path=str(tmp_path)))
    assert "tokenizer_3" in str(error.value) and str(error.value).endswith("fetch it anew.")
    (tmp_path / "model_index.json").write_text('{"tokenizer": ')
    with pytest.raises(MarbleError, match=r"model_index\.json is not JSON; fetch it anew\."):
        text_encoders(ModelConfig(path=str(tmp_path)))


def test_check_names_prompts_too_long_for_a_model_in_the_hub_cache_without_a_network(tmp_path: Path, model: Path) -> None:
    repo = tmp_path / "hub" / "models--org--sd"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("c0ffee")
    (repo / "snapshots").mkdir()
    (repo / "snapshots" / "c0ffee").symlink_to(model)
    (tmp_path / "p.txt").write_text("a cat\n" + "the " * 100)
    command = [sys.executable, "-m", "marble_core.cli", "check", "--set", "model.path=org/sd"]
    command += ["--set", f"data.train.general={tmp_path / 'p.txt'}", "--set", "rewards=[{name: clipscore}]"]
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert f"more than 77 CLIP tokens and are cut: {tmp_path / 'p.txt'}, line 2 (102)." in done.stdout
    assert "The configuration is valid." in done.stdout


def test_the_demos_prompts_fit_its_text_encoders_and_need_no_warning() -> None:
    data = prepare_data(load_config("demo"))
    assert data.warnings == [] and len(data.train) == 6000 and len(data.evaluation) == 576
    assert data.report["train"]["general"]["tokens"]["CLIP"]["limit"] == 16


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
    overrides = [f"model.path={model}", f"data.train.general={tmp_path / 'p.txt'}", "data.train.geneval=generate://geneval"]
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
    for part in ("general: 3 prompts", "dropped as repeated 1, as blocked 0", "position 70", "77 are read", "line 4 (102)"):
        assert part in said, part


def test_a_page_of_many_dropped_prompts_stays_small(tmp_path: Path) -> None:
    data = prepared(tmp_path, "a cat\n" * 20_000)
    write_page(tmp_path / "page.html", data.report)
    text = (tmp_path / "page.html").read_text()
    assert len(text) < 100_000 and "and 19799 more in data_report.json" in text


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
