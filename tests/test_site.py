"""The site's navigation has every page, and troubleshooting and faults quote sentences that the code says."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import marble_core
from paths import ROOT

SOURCES = [path for package in ("marble_core", "pipelines", "components") for path in sorted((ROOT / package).rglob("*.py"))]


def navigation() -> list[str]:
    """The pages of mkdocs.yml, in order; its tags of Python are not read."""
    text = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages, todo = [], list(yaml.safe_load(text)["nav"])
    while todo:
        (entry,) = todo.pop(0).values()
        pages += [entry] if isinstance(entry, str) else []
        todo = [*entry, *todo] if isinstance(entry, list) else todo
    return pages


def test_every_page_of_docs_is_in_the_navigation_once() -> None:
    docs = ROOT / "docs"
    assert sorted(navigation()) == sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))


def test_the_page_of_the_public_api_has_every_public_name_from_where_it_is_defined() -> None:
    named = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert named == [f"{marble_core._HOME[name]}.{name}" for name in sorted(marble_core._HOME)]


@pytest.mark.deep  # needs the extra docs, which neither the package nor its tests do otherwise
@pytest.mark.parametrize(("added", "built"), [("", True), ("[x](cluster.md#nowhere)", False), ("[x](nowhere.md)", False)])
def test_the_site_builds_and_a_link_or_an_anchor_that_leads_nowhere_fails_it(added: str, built: bool, tmp_path: Path) -> None:
    for name in ("mkdocs.yml", "README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("marble_core", "helm", "tests", "examples", "images"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (tmp_path / "docs/upgrading.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{added}\n")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == built, done.stderr
    if built:
        api = (tmp_path / "build/site/api/index.html").read_text(encoding="utf-8")
        assert all(f'id="{home}.{name}"' in api for name, home in marble_core._HOME.items())


def texts() -> list[str]:
    """Every text that the code may say, with ... where it fills something in."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


FIRST, SECOND = r"^\| `([^`]+)` \|", r"^\| [^|]+ \| (?:works, or )?`([^`]+)` \|"  # the column of a table that has them


def lost_sentences(page: str, said: list[str], column: str = FIRST) -> list[str]:
    """Those of the column that no text of the code has, in its order."""
    quoted = re.findall(column, page, re.MULTILINE)
    pattern = {one: re.compile(".*".join(map(re.escape, one.split("...")))) for one in quoted}
    return [one for one in quoted if not any(pattern[one].search(text) for text in said)]


def test_each_sentence_of_troubleshooting_is_one_that_the_code_says() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    assert page.count("\n| `") > 20 and lost_sentences(page, texts()) == []


def test_each_sentence_of_faults_is_one_that_the_code_says() -> None:
    page = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    assert len(re.findall(SECOND, page, re.MULTILINE)) > 50 and lost_sentences(page, texts(), SECOND) == []
    assert lost_sentences(f"{page}| a fault | `There is no ... on mars` | prepare |\n", texts(), SECOND) != []


def test_a_sentence_that_nobody_says_is_seen() -> None:
    assert lost_sentences("| `There is no ... here` | a | b |", ["There is no cat there.", "is no here"]) == [
        "There is no ... here"
    ]
    assert lost_sentences("| `There is no ... here` | a | b |", ["x There is no cat here."]) == []
