"""Ten thousand damaged configurations and prompt files: a value or one sentence, never a traceback."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marble_core.config.loading import load_config
from marble_core.prompts.reading import read
from marble_core.types import SOURCES, MarbleError

pytestmark = pytest.mark.faults

# What breaks parsers: syntax of YAML and JSON, quotes, numbers at their ends, and bytes that are no text.
TOKENS = [
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3\xa9", "\u2028".encode(), b"\r", b"\n", b"\t", b" "),
    *(b'"', b"'", "“".encode(), b"\\", b"\\ud800", b"{", b"}", b"[", b"]", b":", b",", b"- ", b"#", b"? ", b"---\n", b"..."),
    *(b"&a ", b"*a", b"<<: ", b"!!int ", b"!!float ", b"!!timestamp ", b"!!bool ", b"!!binary ", b"!!set ", b"!!omap ", b"!x "),
    *(
        b"null",
        b"true",
        b"NaN",
        b".inf",
        b"-1",
        b"0",
        b"1e999",
        b"1:99",
        b"0x",
        b"2020-13-45",
        b"9" * 5000,
        b"[" * 300,
        b"x" * 2000,
    ),
    *(b'"prompt": ', b'"include": ', b'"count": ', b"train: ", b"rewards: ", b"steps", b"PAR1"),
]
EDIT = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 12), st.sampled_from(TOKENS) | st.binary(max_size=3))


def damaged(whole: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """Each edit: where, as a share of the length; how many bytes go; what comes in their place."""
    for share, gone, come in edits:
        at = int(share * (len(whole) + 1))
        whole = whole[:at] + come + whole[at + gone :]
    return whole


def parquet() -> bytes:
    file = BytesIO()
    wish = [{"class": "dog", "count": 2, "color": None}]
    pq.write_table(pa.table({"prompt": ["two dogs", "a red cat"], "tag": ["counting", None], "include": [wish, wish]}), file)
    return file.getvalue()


CONFIGURATION = b"""\
seed: 3
train: {steps: 20, checkpoint_every: 5, start_from: "s3://marble/runs/x"}
rewards:
  - {name: clipscore, options: {checkpoint: "demo://rewards/clip", batch_size: 8}}
  - {name: ocr, timeout: 60.5, options: {detection: false}}
balance:
  method: marble
  prior: {ocr: 2, clipscore: 1.5}
  wishes: ["ocr >= 0.15", "clipscore + 2 * ocr <= 1.6"]
data:
  train: {general: p.txt, ocr: 'q.jsonl'}
rollout: {prompts: 6}
optimizer: {betas: [0.9, 0.99], lr: 6.0e-4}
"""
FILES = {
    ".jsonl": b'{"prompt": "a sign that says \\"CAT\\"", "source": "ocr", "tag": "t"}\n'
    b'{"prompt": "a dog", "source": "geneval", "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 2, '
    b'"color": "red", "position": ["left of", 0]}], "exclude": [{"class": "dog", "count": 3}]}\n',
    ".txt": 'a sign that says "CAT"\na cup, “Tea”\r\n\r\na "dog"\n'.encode(),
    ".parquet": parquet(),
}
OVERRIDES = [
    b"train.steps=3",
    b"rewards=[{name: ocr, options: {detection: false}}]",
    b'balance={method: marble, wishes: ["ocr >= 0.15"]}',
    b"data.train.ocr=p.txt",
    b"balance={method: equal, every: 3}",
]
SETTINGS = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


def is_one_sentence(error: MarbleError) -> bool:
    said = str(error)
    return said.endswith((".", "?")) and len(said.splitlines()) == 1 and len(said) < 800


@settings(max_examples=3000, **SETTINGS)
@given(edits=st.lists(EDIT, min_size=1, max_size=4))
def test_a_damaged_configuration_is_read_or_answered_by_one_sentence(tmp_path: Path, edits: list) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(damaged(CONFIGURATION, edits))
    try:
        load_config("demo", path)
    except MarbleError as error:
        assert is_one_sentence(error), error


@settings(max_examples=2000, **SETTINGS)
@given(item=st.sampled_from(OVERRIDES), edits=st.lists(EDIT, min_size=1, max_size=4))
def test_a_damaged_option_is_read_or_answered_by_one_sentence(item: bytes, edits: list) -> None:
    text = damaged(item, edits).decode("utf-8", "surrogateescape")  # as Python gives a command line's bytes
    try:
        load_config("demo", overrides=[text])
    except MarbleError as error:
        assert is_one_sentence(error), error


@settings(max_examples=5000, **SETTINGS)
@given(
    suffix=st.sampled_from(sorted(FILES)),
    source=st.sampled_from([*SOURCES, None]),
    edits=st.lists(EDIT, min_size=1, max_size=4),
)
def test_a_damaged_prompt_file_is_read_or_answered_by_one_sentence(
    tmp_path: Path, suffix: str, source: str | None, edits: list
) -> None:
    path = tmp_path / f"p{suffix}"
    path.write_bytes(damaged(FILES[suffix], edits))
    try:
        assert all(placed.prompt.text.strip() and placed.prompt.source for placed in read(path, source))
    except MarbleError as error:
        assert is_one_sentence(error) and str(path) in str(error), error


def test_the_files_that_are_damaged_are_sound(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(CONFIGURATION)
    assert load_config("demo", tmp_path / "mine.yaml").train.steps == 20
    for suffix, data in FILES.items():
        (tmp_path / f"p{suffix}").write_bytes(data)
        assert read(tmp_path / f"p{suffix}", "general" if suffix != ".txt" else "ocr")
    for item in OVERRIDES:
        load_config("demo", overrides=[item.decode()])
