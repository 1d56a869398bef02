"""Which characters the recogniser of OCR can write, and so what a target can score at best. No torch, onnxruntime or rapidocr at import.

A recogniser's ONNX file carries its characters in its metadata (key ``character``, one a line); rapidocr adds the blank. Where no
rapidocr is installed, as in the image of prepare, ocr_alphabet.json stands for the wheel that constraints.txt pins.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, files
from importlib.resources import files as resources
from pathlib import Path
from typing import Any, BinaryIO

from marble_core.rewards.ocr_text import as_printed, is_blank, switched
from marble_core.storage.uri import resolve
from marble_core.types import MarbleError

_PP_OCR = "https://www.modelscope.cn/models/RapidAI/RapidOCR/resolve/v3.10.0/onnx/PP-OCRv5/rec/{}_PP-OCRv5_rec_mobile.onnx"
OCR_LANGUAGES = {  # recognisers beside the one in rapidocr's wheel, by their names there; arabic's order of letters is not known here
    name: _PP_OCR.format(name) for name in ("cyrillic", "devanagari", "el", "en", "eslav", "korean", "latin", "ta", "te", "th")
}
_LOW_QUOTES = "‚„"  # folded into high ones, which they do not look like
_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2  # field numbers in onnx.proto: ModelProto and StringStringEntryProto


@dataclass(frozen=True)
class Alphabet:
    """What one recogniser can write. ``code_points`` is the rule that characters are compared by, see ocr_text.py."""

    characters: frozenset[str]
    code_points: bool = False

    def best(self, target: str) -> float:
        """The most that an image of the target can score in [0, 1], drawn as it is written: the share of its characters that can be
        read, each of the others costing an edit."""
        printed = self._printed(target)
        return sum(map(self.reads, printed)) / len(printed) if printed else 0.0

    def spells(self, target: str) -> bool:
        """Whether one of its letters and digits can be read; where it has none, one of its characters."""
        printed = self._printed(target)
        letters = [c for c in printed if unicodedata.category(c)[0] in "LN"]
        return any(map(self.reads, letters or printed))

    def missing(self, target: str) -> str:
        """The characters of the target that cannot be read, each once."""
        return "".join(dict.fromkeys(c for c in self._printed(target) if not self.reads(c)))

    def reads(self, character: str) -> bool:
        """Whether the alphabet has the character, or what looks like it: no Greek ς though σ is there, and ’ for a prime."""
        if self.code_points:
            return character.lower() in self._lower
        return character in self.characters or (character not in _LOW_QUOTES and set(as_printed(character)) <= self._looks)

    def _printed(self, target: str) -> list[str]:
        if self.code_points:
            return [c for c in target if c != " "]
        return [c for c in unicodedata.normalize("NFC", target) if not is_blank(c)]

    @cached_property
    def _lower(self) -> frozenset[str]:
        return frozenset(c.lower() for c in self.characters)

    @cached_property
    def _looks(self) -> frozenset[str]:
        return frozenset("".join(map(as_printed, self.characters)))


def alphabet(options: Mapping[str, Any]) -> Alphabet:
    """Of the recogniser that these options of the reward ``ocr`` choose. Raises MarbleError for a language that there is none for, and
    where its file is neither in the model cache nor to be had."""
    uri = recogniser_uri(options)
    if uri:
        characters = _characters(resolve(uri))
    else:
        shipped = _shipped()
        characters = _characters(shipped) if shipped else frozenset(_record()["characters"])
    return Alphabet(characters, switched(options, "code_points"))


def recogniser_uri(options: Mapping[str, Any]) -> str | None:
    """The address of the language's recogniser; None for the one in rapidocr's wheel."""
    language = options.get("language")
    if language is None:
        return None
    if language not in OCR_LANGUAGES:
        raise MarbleError(
            f"The reward 'ocr' has no language {language!r}: choose one of {', '.join(OCR_LANGUAGES)}. "
            "Without the option it reads Chinese, Japanese, and what is written in Latin letters."
        )
    return OCR_LANGUAGES[language]


@cache
def _characters(path: Path) -> frozenset[str]:
    try:
        with path.open("rb") as file:
            found = dict(_metadata(file, path.stat().st_size))
        return frozenset(found["character"].splitlines())
    except (OSError, LookupError, ValueError) as error:
        raise MarbleError(
            f"The recogniser {path} does not say which characters it can write ({error!r}): fetch it anew."
        ) from None


def _shipped() -> Path | None:
    """The recogniser in rapidocr's wheel, where that is installed: what lies beside it came from elsewhere."""
    try:
        found = [f for f in files("rapidocr") or [] if f.match("models/*rec*.onnx")]
    except PackageNotFoundError:
        return None
    return Path(str(found[0].locate())) if len(found) == 1 else None


def _record() -> dict[str, str]:
    return json.loads(resources("marble_core.rewards").joinpath("ocr_alphabet.json").read_text(encoding="utf-8"))


def _metadata(file: BinaryIO, end: int) -> Iterator[tuple[str, str]]:
    """Keys and values of an ONNX model's metadata; its graph is skipped."""
    for number, size in _fields(file, end):
        if number == _METADATA_PROPS:
            entry = dict(_strings(file, file.tell() + size))
            yield entry.get(_KEY, ""), entry.get(_VALUE, "")
        else:
            file.seek(size, 1)


def _strings(file: BinaryIO, end: int) -> Iterator[tuple[int, str]]:
    for number, size in _fields(file, end):
        yield number, file.read(size).decode("utf-8")


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """(number, bytes) of each protobuf field of a known length up to ``end``; the reader consumes those bytes."""
    while file.tell() < end:
        number, kind = divmod(_varint(file), 8)
        if kind == 0:
            _varint(file)
        elif kind == 2:
            yield number, _varint(file)
        elif kind in (1, 5):
            file.seek(8 if kind == 1 else 4, 1)
        else:
            raise ValueError(f"field {number} of wire type {kind}")


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while byte := file.read(1):
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
        shift += 7
    raise ValueError("the file is cut off")
