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
    evaluation: dict[str, Uri] = {s: f"demo://prompts/{s}" for s in SOURCES}
    shares: dict[str, Weight] = {}  # [O] of a step's prompts by source, in any unit; 1 where a source has none
    train_size: int = Field(2000, ge=1)  # prompts a source, where they are generated
    evaluation_size: int = Field(96, ge=1)  # held-out prompts a source
    keep_repeated: bool = False  # otherwise the first of equal texts in a file stays
    block_list: Uri | None = None  # a file of words and phrases; prompts that hold one are dropped
    new_prompts: Literal["mix", "only", "all"] = "mix"  # of a run that starts from the champion, see retraining.py
    safe_for_work: bool = True  # drop prompts that hold a word of prompts/filters.py's short list, but for ocr's and geneval's

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
