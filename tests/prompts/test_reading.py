"""Prompt files: what is read, and what is said of files that are no such thing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marble_core.prompts.reading import read, read_prompts, write_jsonl
from marble_core.prompts.sources import load
from marble_core.types import SOURCE_NAME, SOURCES, MarbleError, Prompt
from prompt_files import sentence

GENEVAL_LINE = {
    "tag": "position",
    "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["right of", 0]}],
    "prompt": "a photo of a cat right of a dog",
}


def test_written_prompts_are_read_back_equal(tmp_path: Path) -> None:
    include = [{"class": "cat", "count": 2, "color": "red"}]
    prompts = [
        Prompt("a red circle\u2028on blue, naïve", "general"),
        Prompt('a sign that says "CAT"', "ocr", {"text": "CAT"}),
        Prompt("two red cats", "geneval", {"tag": "counting", "include": include, "exclude": [{"class": "cat", "count": 3}]}),
    ]
    write_jsonl(tmp_path / "p.jsonl", prompts)
    assert read_prompts(tmp_path / "p.jsonl") == prompts


def test_published_formats_are_read_as_they_are_with_bom_and_crlf(tmp_path: Path) -> None:
    (tmp_path / "geneval.jsonl").write_text(json.dumps(GENEVAL_LINE) + "\r\n\n", encoding="utf-8-sig")
    (tmp_path / "ocr.txt").write_bytes(b'A ring with "Forever Yours" on it.\r\rA cup, "Tea".\r\n')
    (geneval,) = read_prompts(tmp_path / "geneval.jsonl", "geneval")
    ring, cup = read(tmp_path / "ocr.txt", "ocr")
    assert geneval.metadata.get("tag") == "position" and geneval.metadata["include"][1]["position"] == ["right of", 0]
    assert ring.prompt == Prompt('A ring with "Forever Yours" on it.', "ocr", {"text": "Forever Yours"})
    assert cup.prompt.metadata.get("text") == "Tea" and cup.where == f"{tmp_path / 'ocr.txt'}, line 3"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ('a sign that says "naïve café 東京 🎨"', "naïve café 東京 🎨"),
        ("a sign that says “CAT’S ‘best’ food”", "CAT’S ‘best’ food"),
        ("a sign that says \"it's 'here'\"", "it's 'here'"),
        ('"A" ' + "x" * 1996, "A"),
        ("ein Schild mit „Offen“, neu", "Offen"),
        ('ein Schild mit „Offen"', "Offen"),
        ("szyld „Otwarte”", "Otwarte"),
        ("en skylt: ”Öppet”", "Öppet"),
        ("une enseigne « Ouvert » d’un café", "Ouvert"),
        ("ein Schild mit »Offen«", "Offen"),
        ("вывеска «Открыто»", "Открыто"),
        ("une enseigne ‹ Ouvert ›", "Ouvert"),
        ("看板「営業中」です", "営業中"),
        ("看板『営業中』です", "営業中"),
        ("a sign that says ‘CAT’S food’, isn’t it", "CAT’S food"),
        ("ein Schild mit ‚Offen‘", "Offen"),
        ('une affiche « vintage » qui dit "OUVERT"', "OUVERT"),
    ],
)
def test_the_words_to_be_drawn_stand_in_one_pair_of_quotes_of_any_script(tmp_path: Path, text: str, target: str) -> None:
    (tmp_path / "p.txt").write_text(text, encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt", "ocr") == [Prompt(text, "ocr", {"text": target})]


def test_byte_order_marks_of_joined_files_are_dropped_where_a_line_begins(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\ufeff\ufeffa dog\r\n\ufeff\r\n \ufeff a cat\ufeff\n", encoding="utf-8-sig")
    assert [(p.prompt.text, p.where[-6:]) for p in read(tmp_path / "p.txt", "general")] == [
        ("a dog", "line 1"),
        ("a cat", "line 3"),
    ]
    (tmp_path / "p.jsonl").write_text(
        '\ufeff{"prompt": "\ufeffa dog"}\n\ufeff{"prompt": "a c\ufeffat"}\n', encoding="utf-8-sig"
    )
    texts = [p.text for p in read_prompts(tmp_path / "p.jsonl", "general")]
    assert texts == ["a dog", "a c\ufeffat"], "inside of a text it is the user's"


def test_numbers_that_other_programs_write_as_3_point_0_are_whole(tmp_path: Path) -> None:
    wishes = [{"class": "dog", "count": 3.0}, {"class": "cat", "count": 1, "position": ["above", 0.0]}]
    (tmp_path / "p.jsonl").write_text(geneval(include=wishes, exclude=[{"class": "dog", "count": 4.0}]))
    (prompt,) = read_prompts(tmp_path / "p.jsonl")
    numbers = [
        prompt.metadata["include"][0]["count"],
        prompt.metadata["include"][1]["position"][1],
        prompt.metadata["exclude"][0]["count"],
    ]
    assert numbers == [3, 0, 4] and all(type(n) is int for n in numbers)


def test_quotes_within_quotes_need_the_words_named(tmp_path: Path) -> None:
    text = 'a note that says "he said "hi" to us"'
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": text}))
    with pytest.raises(MarbleError) as error:
        read_prompts(tmp_path / "p.jsonl", "ocr")
    sentence(error, "line 1", "exactly one pair of quotes, or in the key 'text'")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": text, "text": 'he said "hi" to us'}))
    assert read_prompts(tmp_path / "p.jsonl", "ocr")[0].metadata.get("text") == 'he said "hi" to us'


def geneval(**change: object) -> str:
    return json.dumps(GENEVAL_LINE | {"source": "geneval"} | change)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{'prompt': 'x'}", "not valid JSON"),
        ('["x"]', "not a JSON object"),
        ('{"source": "general"}', "'prompt' is missing"),
        ('{"prompt": "x"}', "'source' is missing"),
        ('{"promt": "x", "source": "general"}', "'prompt' is missing; is it 'promt'?"),
        ('{"prompt": "x", "source": "My Photos"}', "source 'My Photos' must have a name of small letters"),
        ('{"prompt": "x", "source": "general", "metadata": ["y"]}', "'metadata' must be an object"),
        ('{"prompt": "x", "source": "general", "y": 1, "metadata": {"y": 1}}', "'y' stands both beside 'metadata' and in it"),
        ('{"prompt": "x", "source": "general", "y": [NaN]}', "NaN or infinite"),
        (r'{"prompt": "x", "source": "general", "y": {"z": "a\ud83cb"}}', "half of a surrogate pair"),
        (r'{"prompt": "x", "source": "general", "\ud83cb": 1}', "half of a surrogate pair"),
        ('{"prompt": "x", "source": "general", "text": 3}', "'text' must be a string"),
        ('{"prompt": "x", "prompt": "y", "source": "general"}', "'prompt' stands there twice"),
        (geneval(include="#").replace('"#"', '[{"class": "dog", "class": "cat", "count": 1}]'), "'class' stands there twice"),
        ('{"prompt": 3, "source": "general"}', "'prompt' must be a string"),
        ('{"prompt": " ", "source": "general"}', "'prompt' must be a string with something in it"),
        (r'{"prompt": "a\u0000b", "source": "general"}', "'prompt' holds a NUL"),
        (r'{"prompt": "a\ud83cb", "source": "general"}', "half of a surrogate pair"),
        ('{"prompt": "' + "x" * 10_000_000 + '", "source": "general"}', "10000000 characters, more than 10000"),
        ('{"' + "x" * 10_000_000 + '": 1}', "'prompt' is missing"),
        ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "nesting thousands deep"),
        ('{"prompt": ' + "[" * 500 + "]" * 500 + "}", "'prompt' must be a string"),
        ('{"prompt": ' + "9" * 10_000 + "}", "number with thousands of digits"),
        ('{"prompt": "x', "not valid JSON"),
        (r'{"prompt": "a sign that says \"CAT", "source": "ocr"}', "never closed"),
        (r'{"prompt": "\"A\" and \"B\"", "source": "ocr"}', "exactly one pair of quotes"),
        (r'{"prompt": "a sign \" \"", "source": "ocr"}', "exactly one pair of quotes"),
        ('{"prompt": "a ”sign“", "source": "ocr"}', "exactly one pair of quotes"),
        ('{"prompt": "ein „Schild", "source": "ocr"}', "never closed"),
        ('{"prompt": "«A» et «B»", "source": "ocr"}', "exactly one pair of quotes"),
        ('{"prompt": "une « enseigne", "source": "ocr"}', "never closed"),
        ('{"prompt": "the dogs’ sign", "source": "ocr"}', "exactly one pair of quotes"),
        (r'{"prompt": "a sign \"\u200b\"", "source": "ocr"}', "exactly one pair of quotes"),
        (r'{"prompt": "\u200b\u2060\u00ad", "source": "general"}', "'prompt' must be a string with something in it"),
        (r'{"prompt": "\ufeff \u3164\ufe0f", "source": "general"}', "'prompt' must be a string with something in it"),
        ('{"prompt": "x", "source": "geneval"}', "needs 'include'"),
        (geneval(include="dog"), "'include' must be a list"),
        (geneval(exclude=0), "'exclude' must be a list"),
        (geneval(include=["dog"]), "include[0] must be an object"),
        (geneval(include=[{"class": "dog", "count": 1, "colour": "red"}]), "include[0] has the unknown key 'colour'"),
        (geneval(include=[{"count": 1}]), "include[0].class must be a string"),
        (geneval(include=[{"class": "dog", "count": 1, "color": ""}]), "include[0].color must be a string"),
        (geneval(include=[{"class": "dog", "count": 0}]), "include[0].count must be a whole number from 1"),
        (geneval(include=[{"class": "dog", "count": True}]), "include[0].count must be a whole number from 1"),
        (geneval(include=[{"class": "dog", "count": 1, "position": ["right of", 0]}]), "include[0].position must be"),
        (geneval(include=[{"class": "dog", "count": 2.5}]), "include[0].count must be a whole number from 1, not 2.5"),
        (geneval(include=[{"class": "dog", "count": float("inf")}]), "include[0].count must be a whole number from 1"),
        (geneval(exclude=[{"class": "dog"}]), "exclude[0].count"),
        (geneval(exclude=[{"class": "dog", "count": 1, "color": "red"}]), "unknown key 'color'; known keys are class, count"),
    ],
    ids=lambda value: value[:40],
)
def test_a_malformed_line_is_named_with_file_line_and_remedy(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a red circle", "source": "general"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(MarbleError) as error:
        read_prompts(path)
    assert sentence(error, says).startswith(f"{path}, line 3: ")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "holds no prompt"),
        (b"\n \n", "holds no prompt"),
        (b"fine\nna\xefve\n", "line 2: not valid UTF-8"),
        (b"fine\r\rna\xefve\r", "line 3: not valid UTF-8"),
        ("fine".encode("utf-16"), "line 1: not valid UTF-8"),
        ("fine".encode("utf-16-le"), "line 1: 'prompt' holds a NUL character; remove it, or save the file as UTF-8"),
    ],
)
def test_an_empty_or_wrongly_encoded_file_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(MarbleError) as error:
        read_prompts(tmp_path / "p.txt", "general")
    sentence(error, "p.txt", says)


def test_a_missing_file_a_directory_and_a_sourceless_text_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(MarbleError) as error:
            read_prompts(path)
        sentence(error, "cannot be read")
    (tmp_path / "p.txt").write_text("x\n")
    with pytest.raises(MarbleError, match="source must be named"):
        read_prompts(tmp_path / "p.txt")


WISHES = [  # metadata, sound and not
    *(
        [{"class": "dog", "count": 1}, {"class": "cat", "count": 2, "color": "red", "position": ["above", 0]}],
        [],
        [{}],
        [[]],
        [1],
    ),
    *([{"class": "dog", "count": n}] for n in (0, -1, 1.0, 1e300, 10**400, True, "1", None, [1], float("nan"))),
    *([{"class": name, "count": 1}] for name in ("", " ", "\0", "\ud800", "\n", None, 1, ["dog"], {})),
    *([{"class": "dog", "count": 1, "position": p}] for p in (["above", 0], ["above", -1], [["above"], 0], "above", {}, [])),
    *([{"class": "dog", "count": 1, "position": ["left of", 0]}], [{"class": "dog", "count": 1, "size": 1}]),
]

TEXTS = [
    "x",
    'a "sign"',
    "a “sign”",
    '"',
    '""',
    "“",
    "”“",
    "„A“ «B» ‘C’",
    "‘",
    "\ufeff\u200b",
    "\ufeff x \ufeff",
    "",
    " ",
    "\0",
    "\ud83c",
    "é\u0301 🎨",
    "a\r\nb",
    "\u2028",
    "x" * 2000,
]

VALUE = st.sampled_from([*SOURCES, *TEXTS, *WISHES, None, True, 0, -1.5, float("inf"), {}, {"prompt": "x"}, "x" * 20_000])

ROW = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("prompt", "source", "metadata", "text", "tag", "include", "exclude", "", "caption", "\ud800"), VALUE
    ),
)

SOUND = st.sampled_from([{}, GENEVAL_LINE, {"prompt": 'a "sign"'}, {"prompt": "x", "source": "general"}])

NEARLY = st.builds(lambda sound, row: json.dumps({**row, **sound}).encode(), SOUND, ROW)

LINE = NEARLY | st.binary(max_size=30) | st.sampled_from([text.encode("utf-8", "surrogatepass") for text in TEXTS])

DATA = st.builds(lambda lines, end: end.join(lines), st.lists(LINE, max_size=3), st.sampled_from([b"\n", b"\r\n", b"\r"]))


@settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    data=DATA, suffix=st.sampled_from([".jsonl", ".jsonl", ".txt", ".csv", ".tsv"]), source=st.sampled_from([*SOURCES, None])
)
def test_whatever_the_bytes_a_reader_gives_prompts_or_one_sentence(
    tmp_path: Path, data: bytes, suffix: str, source: str | None
) -> None:
    path = tmp_path / f"p{suffix}"
    path.write_bytes(data)
    try:
        prompts = read_prompts(path, source)
    except MarbleError as error:
        said = str(error)
        assert said.startswith(
            (f"{path}, line ", f"{path} holds no prompt", f"{path} is plain text", f"{path} has no column")
        ), said
        assert said.endswith(".") and len(said.splitlines()) == 1 and len(said) < 600, said
    else:
        assert all(p.text.strip() and SOURCE_NAME.fullmatch(p.source) for p in prompts)
        write_jsonl(tmp_path / "again.jsonl", prompts)
        assert read_prompts(tmp_path / "again.jsonl") == prompts


def test_a_file_of_another_source_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [Prompt('"A"', "ocr", {"text": "A"}), Prompt("x", "general")])
    with pytest.raises(MarbleError) as error:
        load(str(tmp_path / "p.jsonl"), "ocr", size=1, seed=0, held_out=False)
    sentence(error, "p.jsonl, line 2", "'general'", "configured as 'ocr'")
