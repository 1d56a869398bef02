"""From a configuration to the prompts that a run trains on and is judged by, checked and reported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from marble_core.config.data import DataConfig
from marble_core.config.schema import RunConfig
from marble_core.prompts.data_report import SourceData, data_report, warnings
from marble_core.prompts.filters import UNSAFE, check_disjoint, read_block_list, split_blocked, split_repeated
from marble_core.prompts.sources import is_made, load, local_file, shown
from marble_core.prompts.token_lengths import text_encoders
from marble_core.prompts.watched import split_watched
from marble_core.types import MarbleError, Placed, Prompt, in_order


@dataclass(frozen=True)
class Data:
    """The prompts by set with their places, the report of them (ready for JSON), and what the user should be told, a sentence
    each."""

    placed_train: list[Placed]
    placed_evaluation: list[Placed]
    report: dict[str, Any]
    warnings: list[str]
    placed_watched: list[Placed] = field(default_factory=list)

    @property
    def train(self) -> list[Prompt]:
        return [placed.prompt for placed in self.placed_train]

    @property
    def evaluation(self) -> list[Prompt]:
        return [placed.prompt for placed in self.placed_evaluation]

    @property
    def watched(self) -> list[Prompt]:
        """What the training is watched by: held out too, and others than the evaluation's."""
        return [placed.prompt for placed in self.placed_watched]


def prepare_data(config: RunConfig) -> Data:
    """Read or make the prompts of every source (types.in_order), drop what the configuration wants dropped, and check.

    Args:
        config: The run's configuration, of which ``data`` says where the prompts are.

    Returns:
        The prompts to train on and those held out, the report of them, and warnings.

    Raises:
        MarbleError: A file cannot be read or has an invalid line, a held-out prompt is trained on, or nothing is left of a source.

    Example:
        >>> data = prepare_data(load_config("demo", overrides=["data.train_size=10"]))
        >>> len(data.train), sorted({prompt.source for prompt in data.train})
        (30, ['general', 'geneval', 'ocr'])
    """
    data, seed = config.data, config.seed
    blocked: list[str] = []
    if data.block_list:
        blocked = read_block_list(local_file(data.block_list), shown(data.block_list))

    def loaded(spec: dict[str, str], size: int, held_out: bool, avoid: Collection[Prompt] = ()) -> list[SourceData]:
        return [_clean(s, spec[s], load(spec[s], s, size, seed, held_out, avoid), data, blocked) for s in in_order(spec)]

    evaluation = loaded(data.evaluation, data.evaluation_size, held_out=True)
    judged_by = [prompt for own in evaluation for prompt in own.prompts]
    train = loaded(data.train, data.train_size, held_out=False, avoid=judged_by)
    placed_train, placed_evaluation = ([p for own in sources for p in own.kept] for sources in (train, evaluation))
    check_disjoint(placed_train, placed_evaluation)

    def clean(source: str, uri: str, prompts: list[Placed]) -> Sequence[Placed]:
        return _clean(source, uri, prompts, data, blocked).kept

    placed_watched, placed_evaluation = split_watched(config, placed_evaluation, placed_train, clean)
    report = data_report({"train": train, "evaluation": evaluation}, text_encoders(config.model))
    return Data(placed_train, placed_evaluation, report, warnings(report), placed_watched)


def _clean(source: str, uri: str, prompts: list[Placed], data: DataConfig, blocked: Sequence[str]) -> SourceData:
    """What was made for the run may repeat a text, to keep the proportions of its kinds; what was read may not, by default."""
    unsafe = UNSAFE if data.safe_for_work and source not in ("ocr", "geneval") else ()
    kept, dropped = split_blocked(prompts, (*blocked, *unsafe))
    if not kept:
        raise MarbleError(
            f"All {len(dropped)} prompts of {shown(uri)} hold blocked words; see data.block_list and data.safe_for_work."
        )
    repeated: list[Placed] = []
    if not (data.keep_repeated or is_made(uri)):
        kept, repeated = split_repeated(kept)
    return SourceData(source, shown(uri), tuple(kept), tuple(dropped), tuple(repeated))
