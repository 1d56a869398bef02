"""The command that lists what a configuration can name: list."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from marble_core.cli.options import AsJson, print_json


class Kind(StrEnum):
    PRESETS = "presets"
    REWARDS = "rewards"
    METHODS = "methods"
    MODELS = "models"


def list_(kind: Annotated[Kind, typer.Argument(help="What to list.")], json_: AsJson = False) -> None:
    """List what a configuration can name, with one sentence each: presets, rewards, methods of balancing, families of models."""
    names = _NAMES[kind]()
    if json_:
        return print_json(names)
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for name, says in names.items():
        table.add_row(name, says)
    Console(highlight=False, markup=False).print(table)


def _presets() -> dict[str, str]:
    from marble_core.config.loading import preset_says, presets

    return {name: preset_says(name) for name in presets()}


def _rewards() -> dict[str, str]:
    from marble_core.config.schema import RewardConfig
    from marble_core.rewards.cards import cards_of
    from marble_core.rewards.registry import SCORERS

    return {name: card.says for name, card in cards_of([RewardConfig(name=name) for name in SCORERS]).items()}


def _methods() -> dict[str, str]:
    from marble_core.config.methods import METHODS, NAMES

    return {name: method.says for name, method in zip(NAMES, METHODS.values(), strict=True)}


def _models() -> dict[str, str]:
    from marble_core.config.families import FAMILIES

    return {name: family.says for name, family in FAMILIES.items()}


_NAMES = {Kind.PRESETS: _presets, Kind.REWARDS: _rewards, Kind.METHODS: _methods, Kind.MODELS: _models}
