"""How many tokens the model's own text encoders see in a prompt, by ``tokenizers``: what is longer is cut without a word."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_core.config.schema import ModelConfig
from marble_core.storage.artifacts import Part
from marble_core.storage.uri import find
from marble_core.types import MarbleError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Find = Callable[[str], Path | None]  # a file of the model by its path in there, where it is on this machine
CLIP_POSITIONS = 77
_CHUNK = 1000  # texts whose tokens are in memory at once
# CLIP's words: contractions, runs of letters, single digits, runs of anything else.
_CLIP_WORD = r"'(?:[stmd]|re|ve|ll)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# Qwen2's: contractions, letters with one sign or space before them, single digits, other signs with a space before and the ends of lines
# behind them, ends of lines, spaces.
_QWEN_WORD = r"(?i:'(?:[stmd]|re|ve|ll))|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_NAMES = {"Qwen2_5_VL": "Qwen2.5-VL"}


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder's name ("CLIP", "T5", "Qwen2.5-VL"), and how many tokens it reads, its special ones included."""

    name: str
    limit: int
    tokenizer: Tokenizer

    def count(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, special ones included."""
        chunks = (list(texts[i : i + _CHUNK]) for i in range(0, len(texts), _CHUNK))
        return [len(encoding.ids) for chunk in chunks for encoding in self.tokenizer.encode_batch_fast(chunk)]


def text_encoders(model: ModelConfig) -> list[TextEncoder]:
    """The model's text encoders, one of each name; none where the model's files are not on this machine.

    T5 reads ``model.max_sequence_length`` tokens, at most what its tokenizer allows. Raises MarbleError for files that are
    broken.
    """
    local = _finder(model)
    parts = _json(local("model_index.json"))
    found: dict[str, TextEncoder] = {}
    for part in sorted(key for key in parts if re.fullmatch(r"tokenizer(_\d)?", key)):
        library_and_class = parts.get(part.replace("tokenizer", "text_encoder")) or [None, None]
        encoder = str(library_and_class[1] or part)
        known = re.match("CLIP|T5|UMT5|Qwen2_5_VL", encoder)
        name = _NAMES.get(known[0], known[0]) if known else encoder
        if name == "T5" and model.t5 == "none":
            continue
        if name not in found and (tokenizer := _tokenizer(local, part, name)):
            most = CLIP_POSITIONS if name == "CLIP" else model.max_sequence_length
            own = _json(local(f"{part}/tokenizer_config.json")).get("model_max_length", most)
            found[name] = TextEncoder(name, min(own, most), tokenizer)
    return list(found.values())


def _finder(model: ModelConfig) -> Find:
    """Looks only at what is on this machine: nothing is brought for a count."""
    try:
        place = find(model.path, Part.PIPELINE, model.revision)
    except MarbleError:
        return lambda relative: None  # a path that may well be there on the machine that trains
    if not isinstance(place, Path):
        from marble_core.storage.hub import HubFile, HubRepository

        if isinstance(place, HubRepository):
            name, revision = place.name, place.revision
            return lambda relative: HubFile(name, relative, revision).cached()
    home = place if isinstance(place, Path) else place.cached()
    return lambda relative: path if home and (path := home / relative).is_file() else None


def _json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise MarbleError(f"The model's file {path} is not JSON; fetch it anew.") from None


def _tokenizer(local: Find, part: str, encoder: str) -> Tokenizer | None:
    """From tokenizer.json, or from vocab.json and merges.txt, as which CLIP's and Qwen2's are published."""
    from tokenizers import Tokenizer

    whole, vocabulary, merges = (local(f"{part}/{name}") for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if whole:
            tokenizer = Tokenizer.from_file(str(whole))
        elif vocabulary and merges:
            tokenizer = (_qwen_tokenizer if encoder.startswith("Qwen") else _clip_tokenizer)(vocabulary, merges)
        else:
            return None
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more special
        reason = " ".join(str(error).split()).rstrip(".")[:160]
        raise MarbleError(f"The model's {part} at {(whole or vocabulary)} cannot be read ({reason}); fetch it anew.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _clip_tokenizer(vocabulary: Path, merges: Path) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    end = "<|endoftext|>"
    bpe = models.BPE.from_file(str(vocabulary), str(merges), end_of_word_suffix="</w>", unk_token=end)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_CLIP_WORD), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    ids = [(name, tokenizer.token_to_id(name)) for name in ("<|startoftext|>", end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{ids[0][0]} $A {end}", special_tokens=ids)
    return tokenizer


def _qwen_tokenizer(vocabulary: Path, merges: Path) -> Tokenizer:
    """Without the template that a pipeline puts around a prompt."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_WORD), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer
