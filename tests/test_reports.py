"""docs/reports.md: each report has a link, a kind, what became of it, and a test that is there."""

import re

from paths import ROOT

CELLS = 4


def rows():
    text = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if not {"report", "---"} & {line[0].strip(), line[0]}]


def test_each_reported_kind_has_a_link_a_verdict_and_a_test_that_is_there():
    tests = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    found = rows()
    assert len({re.search(r"\((https://\S+)\)", row[0])[1] for row in found if "](" in row[0]}) >= 30
    for row in found:
        assert len(row) == CELLS and re.match(r"held|mended", row[2]), row
        names = re.findall(r"`(test_\w+)`", row[3])
        assert names and set(names) <= tests, row
