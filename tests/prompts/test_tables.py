"""Prompts in CSV and TSV files, as public sets are published."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marble_core.prompts.reading import read, read_prompts, write_jsonl
from marble_core.types import MarbleError, Prompt
from prompt_files import sentence


def test_partiprompts_is_read_with_its_quotes_and_its_columns_as_metadata(tmp_path: Path) -> None:
    """Its cells are never quoted: quotes are the text's."""
    path = tmp_path / "PartiPrompts.tsv"
    rows = ["Prompt\tCategory\tChallenge\tNote", "bond\tAbstract\tBasic\tBiology", '"Fly" on a wall\tArts\tComplex\t']
    path.write_text("\r\n".join([*rows, '"Fly an airplane"\tArts\tComplex\t', ""]), encoding="utf-8-sig")
    bond, fly, airplane = read(path, "parti")
    assert bond.prompt == Prompt("bond", "parti", {"Category": "Abstract", "Challenge": "Basic", "Note": "Biology"})
    assert (fly.prompt.text, fly.where) == ('"Fly" on a wall', f"{path}, line 3")
    assert airplane.prompt == Prompt('"Fly an airplane"', "parti", {"Category": "Arts", "Challenge": "Complex"})


def test_drawbench_is_read_by_its_column_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('Prompts,Category\n"A cat, on a ""mat"".",DALL-E\n\nA dog,Colors\n', encoding="utf-8")
    assert read_prompts(tmp_path / "d.csv", "drawbench") == [
        Prompt('A cat, on a "mat".', "drawbench", {"Category": "DALL-E"}),
        Prompt("A dog", "drawbench", {"Category": "Colors"}),
    ]


def test_a_table_carries_the_metadata_of_the_built_in_rewards(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text('prompt,include,tag\ntwo cats,"[{""class"": ""cat"", ""count"": 2}]",counting\n')
    (tmp_path / "o.tsv").write_text('prompt\ttext\na sign that says "CAT"\tCAT\na shop sign\t OPEN \n')
    (cats,) = read_prompts(tmp_path / "g.csv", "geneval")
    assert cats.metadata == {"include": [{"class": "cat", "count": 2}], "tag": "counting"}
    assert [p.metadata for p in read_prompts(tmp_path / "o.tsv", "ocr")] == [{"text": "CAT"}, {"text": "OPEN"}]


CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('",\t"'), min_size=1, max_size=12)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@settings(max_examples=300, deadline=None)
@given(cells=st.lists(CELL.filter(lambda text: text.strip() and not set(text) & {"\ufeff", "\u2028", "\u2029"}), min_size=1))
def test_what_a_program_writes_is_read_back(tmp_path_factory, suffix: str, cells: list[str]) -> None:
    """Python's writer, which quotes cells where it must. A TSV of ours has no tabs inside a cell."""
    if suffix == "tsv":
        cells = [cell.replace("\t", " ") for cell in cells]
        cells = [cell for cell in cells if cell.strip()]
    path = tmp_path_factory.mktemp("tables") / f"p.{suffix}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, "excel" if suffix == "csv" else "excel-tab")
        writer.writerows([["prompt", "note"], *[["a dog", cell] for cell in cells], ["a cat", "end"]])
    assert [p.metadata["note"] for p in read_prompts(path, "dogs")] == [*cells, "end"]


def test_all_metadata_survive_a_file_of_ours(tmp_path: Path) -> None:
    metadata = {
        "reference": "a text",
        "vqa": [["How many?", "two"]],
        "n": 0,
        "deep": {"a": [1.5, None, True, ""]},
        "prompt": "x",
    }
    prompts = [
        Prompt("a dog", "captions", metadata),
        Prompt("a cat", "other-1", {"source": "y", "empty": []}),
        Prompt("x", "z"),
    ]
    write_jsonl(tmp_path / "p.jsonl", prompts)
    assert read_prompts(tmp_path / "p.jsonl") == prompts


def test_metadata_may_stand_beside_the_prompt_or_in_an_object_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a dog", "a": 1, "b": null, "metadata": {"reference": "x", "text": "DOG"}}')
    assert read_prompts(tmp_path / "p.jsonl", "mine") == [Prompt("a dog", "mine", {"a": 1, "reference": "x", "text": "DOG"})]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.csv", "", "holds no prompt"),
        ("p.tsv", "note\nx\n", "no column 'prompt' or 'caption'; its columns are 'note'"),
        ("p.csv", "prompt\n", "holds no prompt"),
        ("p.csv", "prompt,note\nx\n", "line 2: 1 cells, but the first line names 2"),
        ("p.tsv", "prompt\tnote\tnote\n", "two columns are named 'note'"),
        ("p.csv", 'prompt\n"x', "not valid CSV"),
        ("p.csv", "prompt,note\n,y\n", "line 2: the key 'prompt' is missing"),
        ("p.tsv", "prompt\tsource\nx\tMy Photos\n", "line 2: the source 'My Photos'"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_its_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(MarbleError) as error:
        read_prompts(tmp_path / name, "mine")
    sentence(error, name, says)
