"""Prompts in Parquet tables."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marble_core.prompts.reading import read, read_prompts
from marble_core.types import MarbleError, Prompt
from prompt_files import sentence


def test_a_parquet_table_is_read_by_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    wishes = [[{"class": "dog", "count": 2, "color": None}], [{"class": "cat", "count": 1, "color": "red"}]]
    table = {"tag": ["counting", None], "image_uid": [1, 2], "caption": ["two dogs", " a red cat "], "include": wishes}
    pq.write_table(pa.table(table), path)
    dogs, cat = read(path, "geneval")
    assert dogs.prompt == Prompt(
        "two dogs", "geneval", {"tag": "counting", "image_uid": 1, "include": [{"class": "dog", "count": 2}]}
    )
    assert cat.prompt == Prompt(
        "a red cat", "geneval", {"image_uid": 2, "include": [{"class": "cat", "count": 1, "color": "red"}]}
    )
    assert cat.where == f"{path}, row 2"


POSITION = [{"class": "dog", "count": 1}, {"class": "cat", "count": 2, "position": ["left of", 0]}]


@pytest.mark.parametrize("form", ["lists of strings", "JSON text"])
def test_a_parquet_table_carries_positions(form: str, tmp_path: Path) -> None:
    """A column's lists hold values of one type, so the index of ["left of", 0] is a string there, or all is JSON text."""
    wishes: list = [{"class": "dog", "count": 1.0}, {"class": "cat", "count": 2.0, "position": ["left of", "0"]}]
    include = [wishes, wishes[:1]] if form == "lists of strings" else [json.dumps(POSITION), json.dumps(POSITION[:1])]
    pq.write_table(pa.table({"prompt": ["two cats left of a dog", "a dog"], "include": include}), tmp_path / "p.parquet")
    assert [p.metadata.get("include") for p in read_prompts(tmp_path / "p.parquet", "geneval")] == [POSITION, POSITION[:1]]


@pytest.mark.parametrize(
    ("include", "says"),
    [
        ([[{"class": "cat", "count": 1, "position": ["left of", "0"]}]], "row 1: include[0].position must be"),
        ([[{"class": "cat", "count": 1, "position": ["left of", "x"]}]], "row 1: include[0].position must be"),
        (["a cat"], "row 1: 'include' must be a list"),
        (['[{"class": "cat", "class": "dog", "count": 1}]'], "row 1: the key 'class' stands there twice"),
    ],
)
def test_wishes_of_a_table_that_are_none_are_refused_with_their_row(include: list, says: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a cat"], "include": include}), tmp_path / "p.parquet")
    with pytest.raises(MarbleError) as error:
        read_prompts(tmp_path / "p.parquet", "geneval")
    sentence(error, "p.parquet", says)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"title": ["x"], "image": ["y"]}, "no column 'prompt' or 'caption'; its columns are 'title', 'image'"),
        ({"prompt": ["x", None]}, "row 2: the key 'prompt' is missing"),
        ({"prompt": [1]}, "row 1: 'prompt' must be a string"),
        ({"prompt": pa.array([], pa.string())}, "holds no prompt"),
        ({"prompt": pa.array([b"na\xefve"]).view(pa.string())}, "not valid UTF-8"),
    ],
)
def test_a_table_that_holds_no_prompts_is_refused(tmp_path: Path, table: dict, says: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "p.parquet")
    with pytest.raises(MarbleError) as error:
        read_prompts(tmp_path / "p.parquet", "general")
    sentence(error, "p.parquet", says)


def test_a_truncated_or_garbled_parquet_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    rng = random.Random(0)
    pq.write_table(pa.table({"prompt": [f"prompt {rng.random()}" for _ in range(5000)]}), path)
    whole = path.read_bytes()
    garbled = whole[:2000] + bytes(2000) + whole[4000:]
    for data in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], whole[1:], b"x" * 5000, garbled):
        path.write_bytes(data)
        with pytest.raises(MarbleError) as error:
            read_prompts(path, "general")
        sentence(error, "p.parquet", "cannot be read as parquet")
