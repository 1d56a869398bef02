"""Prompts: reading and checking prompt files, the held-out split, and the 1:1:1 mix of an optimizer step. No torch.

A prompt file is JSON lines, one object a line with the keys ``prompt``, ``source``, ``text`` (what OCR should read),
``tag``, ``include`` and ``exclude`` (GenEval's metadata); or a ``.txt`` file with one prompt a line. Whoever reads a file
for one source may leave ``source`` out of it, so GenEval's and flow_grpo's published files are readable as they are.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from marble_core.seeding import derive
from marble_core.types import SOURCES, MarbleError, Prompt, PromptBatch

KEYS = ("prompt", "source", "text", "tag", "include", "exclude")
RELATIONS = ("left of", "right of", "above", "below")
DEMO = "demo://prompts/"


def read_prompts(path: str | Path, source: str | None = None) -> list[Prompt]:
    """Read a prompt file whole: ``.txt`` as one prompt a line, anything else as JSON lines.

    ``source`` is the source of every prompt that does not name its own. Raises MarbleError as read_jsonl and read_text do.
    """
    return (read_text if Path(path).suffix == ".txt" else read_jsonl)(path, source)


def read_jsonl(path: str | Path, source: str | None = None) -> list[Prompt]:
    """Read JSON lines; blank lines are skipped.

    Raises MarbleError with file, line, field and what to do, for the first line that is not a valid prompt, for a file that
    holds none, is not UTF-8, or cannot be read.
    """
    prompts = []
    for where, line in _lines(Path(path)):
        try:
            row = json.loads(line, object_pairs_hook=partial(_unique, where))
        except json.JSONDecodeError as error:
            _fail(where, f"not valid JSON ({error.msg}, column {error.colno}); write one JSON object on each line")
        if not isinstance(row, dict):
            _fail(where, 'not a JSON object; write for example {"prompt": "a red circle", "source": "general"}')
        prompts.append(_prompt(row, source, where))
    return _not_empty(prompts, path)


def read_text(path: str | Path, source: str | None = None) -> list[Prompt]:
    """Read one prompt a line, all of ``source``; the OCR target is what stands in the line's only pair of quotes.

    Raises MarbleError as read_jsonl does, and where ``source`` is missing or is geneval, whose prompts need metadata.
    """
    if source is None:
        raise MarbleError(f"{path} is plain text, so its source must be named; choose one of {', '.join(SOURCES)}.")
    return _not_empty([_prompt({"prompt": line}, source, where) for where, line in _lines(Path(path))], path)


def write_jsonl(path: str | Path, prompts: Iterable[Prompt]) -> None:
    """Write the prompts so that read_jsonl gives them back equal."""
    rows = []
    for p in prompts:
        row: dict[str, Any] = {"prompt": p.text, "source": p.source, "text": p.target, "tag": p.tag}
        row |= {"include": list(p.include), "exclude": list(p.exclude)}
        rows.append(json.dumps({k: v for k, v in row.items() if v not in (None, [])}, ensure_ascii=False, default=dict))
    Path(path).write_text("\n".join(rows) + "\n", encoding="utf-8")


def load_prompts(spec: Mapping[str, str], size: int, seed: int, held_out: bool) -> list[Prompt]:
    """The prompts of every source in ``spec``, in the order of SOURCES.

    ``spec`` maps a source to a prompt file, which is read whole, or to ``demo://prompts/<source>``, of which ``size`` prompts
    are drawn from ``seed``, from the held-out side of the synthetic world if ``held_out``.
    """
    prompts: list[Prompt] = []
    for source in (s for s in SOURCES if s in spec):
        uri = spec[source]
        if uri.startswith(DEMO):
            from marble_core.demo.prompts import generate

            wanted = uri.removeprefix(DEMO)
            if wanted != source:
                raise MarbleError(f"{uri!r} cannot serve the source {source!r}; write '{DEMO}{source}'.")
            prompts += generate(wanted, size, seed, held_out)
        else:
            read = read_prompts(uri, source)
            if stray := next((p for p in read if p.source != source), None):
                raise MarbleError(f"{uri} is configured as {source!r} but holds the {stray.source!r} prompt {stray.text!r}.")
            prompts += read
    return prompts


def check_disjoint(train: Sequence[Prompt], evaluation: Sequence[Prompt]) -> None:
    """Raise MarbleError if a held-out prompt is also trained on; case and white space make no difference."""
    seen = {_normal(p.text) for p in train}
    if leaked := sorted({p.text for p in evaluation if _normal(p.text) in seen}):
        raise MarbleError(
            f"{len(leaked)} held-out prompts are also training prompts, the first is {leaked[0]!r}; "
            "remove them from one of the two files."
        )


def data_report(train: Sequence[Prompt], evaluation: Sequence[Prompt]) -> dict[str, Any]:
    """Counts, tags, lengths in characters, repeated prompts and examples, by set and source; ready for JSON."""
    return {
        name: {s: _describe(own) for s in SOURCES if (own := [p for p in prompts if p.source == s])}
        for name, prompts in (("train", train), ("evaluation", evaluation))
    }


def mix(prompts: Sequence[Prompt], count: int, images_per_prompt: int, step: int, seed: int) -> PromptBatch:
    """The ``count`` prompts of optimizer step ``step`` (from 0), sources in turn, so 1:1:1: a pure function of (seed, step).

    A source is walked through in epochs, each a permutation drawn from (seed, source, epoch): none of its prompts comes
    again before all were used, and its order does not depend on which other sources there are.
    Raises MarbleError if ``count`` is no multiple of the number of sources.
    """
    by_source = {s: own for s in SOURCES if (own := [p for p in prompts if p.source == s])}
    if not by_source or count % len(by_source):
        raise MarbleError(f"{count} prompts a step cannot be mixed 1:1 over {len(by_source)} sources; use a multiple.")
    share = count // len(by_source)
    columns = [_walk(source, own, step * share, share, seed) for source, own in by_source.items()]
    return PromptBatch(tuple(p for row in zip(*columns, strict=True) for p in row), images_per_prompt, step, seed)


def _walk(source: str, own: Sequence[Prompt], start: int, length: int, seed: int) -> list[Prompt]:
    """Entries start .. start + length of the endless walk through one source."""
    walked: list[Prompt] = []
    while len(walked) < length:
        epoch, offset = divmod(start + len(walked), len(own))
        order = np.random.default_rng(derive(seed, "mix", source, epoch)).permutation(len(own))
        walked += [own[i] for i in order[offset : offset + length - len(walked)]]
    return walked


def _describe(prompts: Sequence[Prompt]) -> dict[str, Any]:
    lengths = [len(p.text) for p in prompts]
    return {
        "prompts": len(prompts),
        "repeated": len(prompts) - len({_normal(p.text) for p in prompts}),
        "tags": dict(sorted(Counter(p.tag for p in prompts if p.tag).items())),
        "characters": {"min": min(lengths), "median": statistics.median(lengths), "max": max(lengths)},
        "examples": [p.text for p in prompts[:: max(1, len(prompts) // 3)][:3]],
    }


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def _fail(where: str, what: str) -> NoReturn:
    raise MarbleError(f"{where}: {what}.")


def _not_empty(prompts: list[Prompt], path: str | Path) -> list[Prompt]:
    if not prompts:
        raise MarbleError(f"{path} holds no prompt; write one on each line.")
    return prompts


def _lines(path: Path) -> list[tuple[str, str]]:
    """(place for error messages, text) of every line that is not blank."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MarbleError(f"The prompt file {path} cannot be read: {error.strerror}.") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _fail(f"{path}, line {line}", "not valid UTF-8; save the file in that encoding")
    # Not splitlines: it also splits at characters such as U+2028, which may stand inside a prompt.
    return [(f"{path}, line {i}", line.strip()) for i, line in enumerate(text.split("\n"), 1) if line.strip()]


def _unique(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        doubled = next(k for k, n in Counter(k for k, _ in pairs).items() if n > 1)
        _fail(where, f"the key {doubled!r} stands there twice; keep one")
    return row


def _prompt(row: Mapping[str, Any], source: str | None, where: str) -> Prompt:
    if unknown := [k for k in row if k not in KEYS]:
        _fail(where, f"unknown key {unknown[0]!r}; known keys are {', '.join(KEYS)}")
    text = _string(row, "prompt", where)
    if text is None:
        _fail(where, "the key 'prompt' is missing; every line needs one")
    own = _string(row, "source", where) or source
    if own is None:
        _fail(where, f"the key 'source' is missing; choose one of {', '.join(SOURCES)}")
    if own not in SOURCES:
        _fail(where, f"unknown source {own!r}; choose one of {', '.join(SOURCES)}")
    target = _string(row, "text", where)
    if own == "ocr" and target is None:
        target = _quoted(text, where)
    include, exclude = _objects(row, "include", where), _objects(row, "exclude", where)
    if own == "geneval" and not include:
        _fail(where, """a geneval prompt needs 'include', for example [{"class": "bench", "count": 1}]""")
    return Prompt(text, own, target, _string(row, "tag", where), include, exclude)


def _string(row: Mapping[str, Any], key: str, where: str) -> str | None:
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        _fail(where, f"{key!r} must be a string with something in it, not {value!r}")
    return value.strip()


def _quoted(text: str, where: str) -> str:
    """The OCR target: what stands in the only pair of straight double quotes (rewards.md section 3)."""
    marks = text.count('"')
    if marks == 1:
        _fail(where, "the quote in 'prompt' is never closed; put the words to be drawn in one pair of quotes")
    target = text.split('"')[1].strip() if marks == 2 else ""
    if not target:
        _fail(where, "an ocr prompt needs the words to be drawn in exactly one pair of quotes, or in the key 'text'")
    return target


def _objects(row: Mapping[str, Any], key: str, where: str) -> tuple[Mapping[str, Any], ...]:
    """GenEval's list of {class, count, color?, position? = [relation, index of an earlier entry]}."""
    entries = row.get(key) or []
    if not isinstance(entries, list):
        _fail(where, f'{key!r} must be a list of objects such as {{"class": "bench", "count": 1}}')
    for i, entry in enumerate(entries):
        at = f"{key}[{i}]"
        if not isinstance(entry, dict):
            _fail(where, f'{at} must be an object such as {{"class": "bench", "count": 1}}, not {entry!r}')
        if unknown := [k for k in entry if k not in ("class", "count", "color", "position")]:
            _fail(where, f"{at} has the unknown key {unknown[0]!r}; known keys are class, count, color, position")
        for name in ("class", "color"):
            if (name in entry or name == "class") and not (isinstance(entry.get(name), str) and entry[name].strip()):
                _fail(where, f"{at}.{name} must name a {name}, not {entry.get(name)!r}")
        count = entry.get("count")
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            _fail(where, f"{at}.count must be a whole number from 1, not {count!r}")
        if "position" in entry and not _is_position(entry["position"], i):
            _fail(where, f"{at}.position must be [one of {', '.join(RELATIONS)}; the index of an earlier entry]")
    return tuple(entries)


def _is_position(value: Any, i: int) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    relation, other = value
    return relation in RELATIONS and isinstance(other, int) and not isinstance(other, bool) and 0 <= other < i
