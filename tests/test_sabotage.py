"""The table of sabotages stays one: each text is there once, its change is Python, and its test exists. `make sabotage` runs it."""

import ast

import pytest

from paths import ROOT
from planted import TESTS
from sabotage import SABOTAGES, sabotaged


@pytest.mark.parametrize("row", SABOTAGES, ids=[row[0] for row in SABOTAGES])
def test_a_sabotage_can_be_applied_and_names_a_test(row):
    _, file, old, new, tests = row
    ast.parse(sabotaged(file, old, new))
    for test in tests.split("||"):
        path, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8")


def test_the_quick_tests_of_a_file_exist():
    for file, tests in TESTS.items():
        assert (ROOT / file).is_file() and all((ROOT / test).is_file() for test in tests), file
