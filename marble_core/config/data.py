"""The data section: prompts to train on and to be judged by. Marks as in schema.py."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from marble_core.config.section import Section, Uri, Weight
from marble_core.types import SOURCE_NAME, SOURCES


class DataConfig(Section):
    """Prompt files by source (local, s3://, https://), of any sources; demo://prompts/<general, ocr, geneval> and
    generate://<ocr, geneval> make prompts instead.

    A source that is null is left out.
    """

    train: dict[str, Uri] = {s: f"demo://prompts/{s}" for s in SOURCES}
    """Prompt files to train on, by source: a path, s3://, https://, demo://prompts/NAME or generate://NAME; null: left out. [O]"""
    evaluation: dict[str, Uri] = {s: f"demo://prompts/{s}" for s in SOURCES}
    """Held-out prompt files, by source, in the same form. [O]"""
    shares: dict[str, Weight] = {}
    """Shares of a step's prompts by source, in any unit; 1 where a source has none. [O]"""
    train_size: int = Field(2000, ge=1)
    """Prompts per source, where they are generated. [O]"""
    evaluation_size: int = Field(96, ge=1)
    """Held-out prompts per source. [O]"""
    keep_repeated: bool = False
    """Keep every one of equal texts in a file instead of the first. [O]"""
    block_list: Uri | None = None
    """A file of words and phrases; prompts that hold one are dropped; null: none. [O]"""
    new_prompts: Literal["mix", "only", "all"] = "mix"
    """Of a run that starts from the champion: mix (new prompts, filled up with its own), only (new ones) or all. [O]"""
    safe_for_work: bool = True
    """Drop prompts with a word of the short list in prompts/filters.py, except ocr's and geneval's. [O]"""

    @field_validator("train", "evaluation", mode="before")
    @classmethod
    def _without(cls, sources: Any) -> Any:
        """A source that is null is left out, though what lies below names it."""
        return {s: uri for s, uri in sources.items() if uri is not None} if isinstance(sources, dict) else sources

    @model_validator(mode="after")
    def _named_sources(self) -> DataConfig:
        for where in (self.train, self.evaluation):
            if odd := [source for source in where if not SOURCE_NAME.fullmatch(source)]:
                raise ValueError(
                    f"the source {odd[0]!r:.60} must have a name of small letters, digits, _ and -, up to 40, like {', '.join(SOURCES)}"
                )
            if not where:
                raise ValueError("at least one source needs a prompt file")
        if unknown := set(self.shares) - set(self.train):
            raise ValueError(f"data.shares names the source {min(unknown)!r}, but data.train has {', '.join(self.train)}")
        return self
