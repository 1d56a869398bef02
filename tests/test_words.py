"""What a person reads first is short: README in lines, and its sentences, and those of the pages that it leads a newcomer to, in words."""

import re

from paths import ROOT

PAGES = (
    *(
        "README.md",
        "docs/index.md",
        "docs/laptop.md",
        "docs/command_line.md",
        "docs/extending.md",
        "docs/prompts.md",
        "docs/logged_numbers.md",
    ),
    *(
        "docs/reading_a_report.md",
        "docs/troubleshooting.md",
        "docs/upgrading.md",
        "docs/api.md",
        "docs/rehearsal.md",
        "docs/performance.md",
        "docs/cluster.md",
    ),
    *(f"docs/tasks/{page.name}" for page in sorted((ROOT / "docs/tasks").glob("*.md"))),
)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def sentences(page: str) -> list[list[str]]:
    """The words of each, of a page in Markdown without its blocks of code; code in a line is one word, each cell and item a sentence."""
    text = re.sub(r"`[^`]*`", "CODE", FENCED.sub("\n\n", page))
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    parts = re.split(r"\n\s*\n|\n(?=[-|#]|\d+\. )|\|", text)
    return [re.findall(r"\S*\w\S*", s) for part in parts for s in re.split(r"(?<=[.:;!?])[*)]*\s+(?=[A-Z\d*])", part)]


def test_no_sentence_of_the_first_pages_has_more_than_25_words() -> None:
    long = {page: [" ".join(s) for s in sentences((ROOT / page).read_text()) if len(s) > 25] for page in PAGES}
    assert {page: found for page, found in long.items() if found} == {}


def test_the_readme_has_at_most_200_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_a_long_sentence_is_seen_in_a_paragraph_an_item_and_a_cell() -> None:
    long = " ".join(["word"] * 26)
    for page in (f"One. {long.capitalize()}.\n", f"- one\n- {long}\n", f"| a | {long} |\n", f"```\ncode\n```\n{long}"):
        assert max(map(len, sentences(page))) == 26, page
    assert max(map(len, sentences(f"```\n{long}\n```\nOne `a b c` [d e](f)."))) == 4
