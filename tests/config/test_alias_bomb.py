"""Aliases of aliases are counted as what they stand for."""

import pytest

from marble_core.config.strict_yaml import parse
from marble_core.types import MarbleError


@pytest.mark.parametrize("text", ["&a [" + "x," * 9 + "]", "a: &a [1, *a]"], ids=["of aliases", "that holds itself"])
def test_a_bomb_of_aliases_is_one_sentence(text: str) -> None:
    if "*" not in text:
        text = f"- {text}\n" + "".join(
            f"- &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        )
    with pytest.raises(MarbleError, match=r"has more than 100000 values once its aliases"):
        parse(text, "The configuration")


def test_an_alias_that_repeats_a_setting_is_read() -> None:
    assert parse("a: &x {lr: 1}\nb: *x\n", "It") == {"a": {"lr": 1}, "b": {"lr": 1}}
