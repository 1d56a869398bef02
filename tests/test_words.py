"""What a person reads is short: README in lines; in words its sentences, those of the other pages, of the command line's help and of
the settings, and whatever the code says."""

import ast
import re
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from marble_core.cli import app
from marble_core.config.reference import as_markdown
from marble_core.rewards.unifiedreward import INSTRUCTION  # for a model, not for a person
from marble_core.runtime.child_process import _WATCHDOG  # for a shell
from paths import ROOT

NOT_REWORDED = "docs/evidence.md"  # its criteria stand as they were committed before the study's first cell
PAGES = (
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "images/README.md", "helm/marble/README.md"),
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "components").glob("*/README.md"))),
    *(name for page in sorted((ROOT / "docs").rglob("*.md")) if (name := str(page.relative_to(ROOT))) != NOT_REWORDED),
)
CODE = re.compile(r"^```.*?^```$|(?<=\n\n)(?: {4}.*\n)+", re.MULTILINE | re.DOTALL)  # fenced, or indented as formulas are


def sentences(page: str) -> list[list[str]]:
    """The words of each, of a page in Markdown without its blocks of code; code in a line is one word, each cell and item a sentence."""
    text = re.sub(r"`[^`]*`", "CODE", CODE.sub("\n\n", page))
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    parts = re.split(r"\n\s*\n|\n(?=[-|#]|\d+\. )|\|", text)
    return [re.findall(r"\S*\w\S*", s) for part in parts for s in re.split(r"(?<=[.:;!?])[*)]*\s+(?=[A-Z\d*])", part)]


def test_no_sentence_of_a_page_has_more_than_25_words() -> None:
    assert len(PAGES) > 40 and (ROOT / NOT_REWORDED).is_file()
    long = {page: [" ".join(s) for s in sentences((ROOT / page).read_text()) if len(s) > 25] for page in PAGES}
    assert {page: found for page, found in long.items() if found} == {}


def helps(command: Any, words: str = "marble") -> Iterator[tuple[str, str]]:
    """Each help text of a command, of its options and of the commands below it, and whose it is."""
    yield words, command.help or ""
    for parameter in command.params:
        yield f"{words} {parameter.name}", getattr(parameter, "help", None) or ""
    for name, below in getattr(command, "commands", {}).items():
        yield from helps(below, f"{words} {name}")


def literal(node: ast.AST) -> str | None:
    """A string as the source has it, one word for each value that is put in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "VALUE" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = literal(node.left), literal(node.right)
        return None if sides == (None, None) else "".join("VALUE" if side is None else side for side in sides)
    return None


def strings(source: str) -> Iterator[str]:
    """Each whole string of a module but for docstrings: errors, warnings, progress lines, what the report says."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if (text := literal(node)) is not None:
            yield text
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            waiting += ast.iter_child_nodes(node)


def test_no_sentence_of_a_help_text_has_more_than_25_words() -> None:
    found = dict(helps(get_command(app)))
    assert len(found) > 200 and "marble schedule create cron" in found
    assert [(whose, " ".join(s)) for whose, text in found.items() for s in sentences(text) if len(s) > 25] == []


def test_no_sentence_of_an_error_or_of_anything_else_that_the_code_says_has_more_than_25_words() -> None:
    """A value that is put into a sentence counts as one word."""
    files = [path for folder in ("marble_core", "components", "pipelines") for path in sorted((ROOT / folder).rglob("*.py"))]
    texts = [(path, text) for path in files for text in strings(path.read_text()) if text not in (INSTRUCTION, _WATCHDOG)]
    assert len(texts) > 5000
    assert [f"{path.relative_to(ROOT)}: {' '.join(s)}" for path, text in texts for s in sentences(text) if len(s) > 25] == []


def test_no_sentence_on_a_setting_has_more_than_25_words() -> None:
    assert [" ".join(s) for s in sentences(as_markdown()) if len(s) > 25] == []


def test_a_long_sentence_of_the_code_is_seen_however_it_is_put_together() -> None:
    half = " ".join(["word"] * 13)
    for source in (f"raise E('{half} {half}')", f"raise E(f'{half} {{n}} ' '{half}')", f"x = a + ' {half} ' + f'{half}'"):
        assert max(len(s) for text in strings(source) for s in sentences(text)) >= 26, source
    assert list(strings(f'def f():\n    """{half} {half}"""\n    return "one"')) == ["one"]


def test_the_readme_has_at_most_200_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_a_long_sentence_is_seen_in_a_paragraph_an_item_and_a_cell() -> None:
    long = " ".join(["word"] * 26)
    for page in (f"One. {long.capitalize()}.\n", f"- one\n- {long}\n", f"| a | {long} |\n", f"```\ncode\n```\n{long}"):
        assert max(map(len, sentences(page))) == 26, page
    assert max(map(len, sentences(f"```\n{long}\n```\nOne `a b c` [d e](f)."))) == 4
