"""Prompt files, their faults, the held-out split, and the 1:1:1 mix."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from marble_core.prompts import check_disjoint, data_report, load_prompts, mix, read_jsonl, read_prompts, write_jsonl
from marble_core.types import SOURCES, MarbleError, Prompt

GENEVAL_LINE = {
    "tag": "position",
    "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["right of", 0]}],
    "prompt": "a photo of a cat right of a dog",
}


def a_pool(sizes: dict[str, int]) -> list[Prompt]:
    return [Prompt(f"{source} {i}", source) for source, n in sizes.items() for i in range(n)]


def test_written_prompts_are_read_back_equal(tmp_path: Path) -> None:
    include = ({"class": "cat", "count": 2, "color": "red"},)
    prompts = [
        Prompt("a red circle\u2028on blue, naïve", "general"),
        Prompt('a sign that says "CAT"', "ocr", target="CAT"),
        Prompt("two red cats", "geneval", tag="counting", include=include, exclude=({"class": "cat", "count": 3},)),
    ]
    write_jsonl(tmp_path / "p.jsonl", prompts)
    assert read_jsonl(tmp_path / "p.jsonl") == prompts


def test_published_formats_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "geneval.jsonl").write_text(json.dumps(GENEVAL_LINE) + "\r\n\n", encoding="utf-8-sig")
    (tmp_path / "ocr.txt").write_text('A ring with "Forever Yours" on it.\n')
    (geneval,) = read_prompts(tmp_path / "geneval.jsonl", "geneval")
    (ocr,) = read_prompts(tmp_path / "ocr.txt", "ocr")
    assert geneval.tag == "position" and geneval.include[1]["position"] == ["right of", 0]
    assert ocr == Prompt('A ring with "Forever Yours" on it.', "ocr", target="Forever Yours")


def geneval(**change: object) -> str:
    return json.dumps(GENEVAL_LINE | {"source": "geneval"} | change)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{'prompt': 'x'}", "not valid JSON"),
        ('["x"]', "not a JSON object"),
        ('{"source": "general"}', "'prompt' is missing"),
        ('{"prompt": "x"}', "'source' is missing"),
        ('{"prompt": "x", "source": "genral"}', "unknown source 'genral'; choose one of general, ocr, geneval"),
        ('{"prompt": "x", "source": "general", "txt": "y"}', "unknown key 'txt'; known keys are prompt, source"),
        ('{"prompt": "x", "prompt": "y", "source": "general"}', "'prompt' stands there twice"),
        ('{"prompt": 3, "source": "general"}', "'prompt' must be a string"),
        ('{"prompt": " ", "source": "general"}', "'prompt' must be a string with something in it"),
        (r'{"prompt": "a sign that says \"CAT", "source": "ocr"}', "never closed"),
        (r'{"prompt": "\"A\" and \"B\"", "source": "ocr"}', "exactly one pair of quotes"),
        (r'{"prompt": "a sign \" \"", "source": "ocr"}', "exactly one pair of quotes"),
        ('{"prompt": "x", "source": "geneval"}', "needs 'include'"),
        (geneval(include="dog"), "'include' must be a list"),
        (geneval(include=["dog"]), "include[0] must be an object"),
        (geneval(include=[{"class": "dog", "count": 1, "colour": "red"}]), "include[0] has the unknown key 'colour'"),
        (geneval(include=[{"count": 1}]), "include[0].class must name a class"),
        (geneval(include=[{"class": "dog", "count": 0}]), "include[0].count must be a whole number from 1"),
        (geneval(include=[{"class": "dog", "count": 1, "position": ["right of", 0]}]), "include[0].position must be"),
        (geneval(exclude=[{"class": "dog"}]), "exclude[0].count"),
    ],
)
def test_a_malformed_line_is_named_with_file_line_and_remedy(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a red circle", "source": "general"}\n\n' + line + "\n")
    with pytest.raises(MarbleError) as caught:
        read_jsonl(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 3: ") and says in message
    assert message.endswith(".") and "\n" not in message


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "holds no prompt"), (b"\n \n", "holds no prompt"), (b"fine\nna\xefve\n", "line 2: not valid UTF-8")],
)
def test_an_empty_or_wrongly_encoded_file_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(MarbleError, match=says):
        read_prompts(tmp_path / "p.txt", "general")


def test_a_missing_file_and_a_sourceless_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MarbleError, match=r"none\.jsonl cannot be read: No such file"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "p.txt").write_text("x\n")
    with pytest.raises(MarbleError, match="source must be named"):
        read_prompts(tmp_path / "p.txt")


def test_load_prompts_reads_files_whole_in_the_order_of_the_sources(tmp_path: Path) -> None:
    (tmp_path / "o.txt").write_text('"A"\n"B"\n')
    (tmp_path / "g.txt").write_text("x\ny\nz\n")
    loaded = load_prompts({"ocr": str(tmp_path / "o.txt"), "general": str(tmp_path / "g.txt")}, size=1, seed=0, held_out=False)
    assert [p.text for p in loaded] == ["x", "y", "z", '"A"', '"B"']


def test_a_file_of_another_source_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [Prompt("x", "general")])
    with pytest.raises(MarbleError, match="configured as 'ocr' but holds the 'general' prompt"):
        load_prompts({"ocr": str(tmp_path / "p.jsonl")}, size=1, seed=0, held_out=False)


def test_a_held_out_prompt_that_is_trained_on_is_a_leak() -> None:
    train, evaluation = [Prompt("A red  Circle", "general")], [Prompt("a blue circle", "general")]
    check_disjoint(train, evaluation)
    with pytest.raises(MarbleError, match=r"1 held-out prompts .* 'a red circle'"):
        check_disjoint(train, [*evaluation, Prompt("a red circle", "geneval")])


def test_every_step_mixes_the_sources_one_to_one() -> None:
    pool = a_pool({"general": 7, "ocr": 5, "geneval": 3})
    for step in range(20):
        batch = mix(pool, 12, 8, step, seed=1)
        assert Counter(p.source for p in batch.prompts) == dict.fromkeys(SOURCES, 4)
        assert len(batch) == 96


def test_no_prompt_repeats_before_all_of_its_source_were_used() -> None:
    pool = a_pool({"general": 10, "ocr": 4, "geneval": 3})
    walked = [p.text for step in range(10) for p in mix(pool, 9, 2, step, seed=3).prompts if p.source == "general"]
    epochs = [walked[:10], walked[10:20], walked[20:30]]
    assert [len(set(epoch)) for epoch in epochs] == [10, 10, 10]
    assert epochs[0] != epochs[1]


def test_the_mix_is_a_function_of_seed_and_step_alone() -> None:
    pool = a_pool({"general": 50, "ocr": 50})
    later = mix(pool, 8, 2, 5, seed=0)
    assert later == mix(pool, 8, 2, 5, seed=0)
    assert later.prompts != mix(pool, 8, 2, 6, seed=0).prompts
    assert later.prompts != mix(pool, 8, 2, 5, seed=1).prompts
    alone = mix([p for p in pool if p.source == "ocr"], 4, 2, 5, seed=0)
    assert alone.prompts == tuple(p for p in later.prompts if p.source == "ocr")


def test_a_count_that_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(MarbleError, match="10 prompts a step cannot be mixed 1:1 over 3 sources"):
        mix(a_pool(dict.fromkeys(SOURCES, 4)), 10, 2, 0, seed=0)


def test_the_data_report_counts_by_source_and_tag() -> None:
    train = [Prompt("ab", "general"), Prompt("AB ", "general"), Prompt("abcd", "geneval", tag="counting")]
    report = data_report(train, train[:1])
    assert report["train"]["general"]["prompts"] == 2 and report["train"]["general"]["repeated"] == 1
    assert report["train"]["geneval"]["tags"] == {"counting": 1}
    assert report["evaluation"]["general"]["characters"] == {"min": 2, "median": 2, "max": 2}
    assert json.loads(json.dumps(report)) == report
