"""Every reference between code, documents and files leads somewhere: documents, their sections and anchors, paths of the repository."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from paths import ROOT

TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
READ = [name for name in TRACKED if name.endswith((".py", ".md", ".yaml")) or Path(name).name in ("Makefile", "Dockerfile")]
TEXT = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in READ
    if (ROOT / name).is_file() and Path(name).name != Path(__file__).name
}
PAGES = {name: text for name, text in TEXT.items() if name.endswith(".md")}
DOCUMENTS = {name: text for name, text in PAGES.items() if name.startswith("docs/")}

NUMBER = r"\d+[a-z]?\b"
NUMBERS = rf"sections?[\s#]+({NUMBER}(?:(?:,|[\s#]+and)[\s#]+{NUMBER})*)"  # "sections 2b, 2d and 6", across lines of a comment
DOCUMENT = re.compile(r"(?<![\w./:-])docs/[\w-]+\.md")
SECTIONS = re.compile(rf"(docs/[\w-]+\.md),[\s#]+{NUMBERS}")
SECTIONS_OF = re.compile(rf"{NUMBERS}[\s#]+of[\s#]+\[(docs/[\w-]+\.md)\]")
OWN_SECTIONS = re.compile(rf"\b{NUMBERS}")
ELSEWHERE = re.compile(r"\bshared/[\w-]+|\b(?:design|layout)\.md\b")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NUMBERED = re.compile(rf"^#+ ({NUMBER})", re.MULTILINE)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(  # from the root: a file or a folder; a Python file may begin below marble_core, or be a name alone
    r"(?:marble_core|pipelines|components|images|helm|tests|docs)/(?:[\w./-]*\.\w+|[\w./-]*/)?|(?:[a-z_]\w*/)*[a-z_]\w*\.py"
)
OF_THE_USER = {"my_rewards.py", "my_captions.py", "my_model.py", "my_method.py"}


def lost_documents(text: str) -> list[str]:
    return [found for found in DOCUMENT.findall(text) if not (ROOT / found).is_file()]


def lost_sections(text: str, documents: Mapping[str, str]) -> list[str]:
    """Sections that a text names, of documents that have no heading of that number."""
    named = SECTIONS.findall(text) + [(document, numbers) for numbers, document in SECTIONS_OF.findall(text)]
    return [
        f"{document}, section {n}" for document, numbers in named for n in _without_heading(numbers, documents.get(document))
    ]


def lost_own_sections(text: str) -> list[str]:
    """Sections that a document names without saying of which: its own."""
    rest = SECTIONS_OF.sub("", SECTIONS.sub("", text))
    return [n for numbers in OWN_SECTIONS.findall(rest) for n in _without_heading(numbers, text)]


def _without_heading(numbers: str, document: str | None) -> list[str]:
    there = NUMBERED.findall(document or "")
    return [n for n in re.findall(NUMBER, numbers) if n not in there]


def lost_links(name: str, text: str) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of it."""
    lost = []
    for target in LINK.findall(FENCED.sub("", text)):
        path, _, fragment = target.partition("#")
        place = (ROOT / name).parent / path if path else ROOT / name
        if not re.match(r"[a-z]+:", target) and not (place.exists() and (not fragment or fragment in _anchors(place))):
            lost.append(target)
    return lost


def _anchors(page: Path) -> list[str]:
    """Of its headings, as GitHub makes them."""
    headings = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return [re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings]


def paths(text: str) -> Iterator[str]:
    """Paths of the repository that a page names between backticks."""
    for code in CODE.findall(FENCED.sub("", text)):
        yield from (word for word in code.split() if PATH.fullmatch(word) and word not in OF_THE_USER)


def lost_paths(text: str) -> list[str]:
    names = {Path(tracked).name for tracked in TRACKED}
    roots = (ROOT, ROOT / "marble_core")
    return [path for path in paths(text) if path not in names and not any((root / path).exists() for root in roots)]


def test_every_document_that_is_cited_exists() -> None:
    assert {name: lost for name, text in TEXT.items() if (lost := lost_documents(text))} == {}


def test_every_section_that_is_cited_is_a_heading_of_its_document() -> None:
    assert {name: lost for name, text in TEXT.items() if (lost := lost_sections(text, DOCUMENTS))} == {}
    assert {name: lost for name, text in DOCUMENTS.items() if (lost := lost_own_sections(text))} == {}


def test_nothing_cites_what_is_not_in_the_repository() -> None:
    assert {name: found for name, text in TEXT.items() if (found := ELSEWHERE.findall(text))} == {}


def test_every_relative_link_leads_to_a_file_and_its_heading() -> None:
    assert {name: lost for name, text in PAGES.items() if (lost := lost_links(name, text))} == {}


def test_every_path_that_a_document_names_exists() -> None:
    named = {"README.md": TEXT["README.md"], **DOCUMENTS}
    assert {name: lost for name, text in named.items() if (lost := lost_paths(text))} == {}


def test_the_listing_of_the_architecture_is_what_marble_core_holds() -> None:
    """Each package and each module beside them has a line with its duty, and no line is of one that is gone."""
    listing = re.search(r"^marble_core/\n((?:  .+\n)+)", DOCUMENTS["docs/architecture.md"], re.MULTILINE)
    assert listing
    listed = {line.split()[0] for line in listing[1].splitlines()}
    inside = [tracked.split("/")[1:] for tracked in TRACKED if tracked.startswith("marble_core/")]
    assert listed == {first if not rest else f"{first}/" for first, *rest in inside} - {"py.typed"}


def test_these_rules_see_what_breaks_them() -> None:
    documents = {"docs/a.md": "# A\n\n## 2. Two\n\n### 2b. Two b\n"}
    assert lost_documents("see docs/nowhere.md") == ["docs/nowhere.md"]
    assert lost_sections("docs/a.md, sections 2,\n# 2b and 3", documents) == ["docs/a.md, section 3"]
    assert lost_sections("docs/a.md, section 2a.", documents) == ["docs/a.md, section 2a"]
    assert lost_sections("section 2 of [docs/a.md](a.md), section 4 of\n[docs/a.md](a.md)", documents) == [
        "docs/a.md, section 4"
    ]
    assert lost_own_sections("## 1. One\nsections 1 and 2, docs/a.md, section 9, section 9 of [docs/a.md](a.md)") == ["2"]
    assert ELSEWHERE.search("(shared/notes.md)") and ELSEWHERE.search("design.md, section 4")
    assert not ELSEWHERE.search("redesign.md, shared / apart")
    links = "[a](docs/nowhere.md) [b](README.md#nowhere) [c](#limits-plainly) [d](https://x.y)"
    assert lost_links("README.md", links) == ["docs/nowhere.md", "README.md#nowhere"]
    named = "`marble_core/nowhere.py`, `nowhere/x.py`, `nowhere.py`, `pip install x`, `types.py`, `cli/runs.py`, `tests/`, `tests/a/`"
    assert lost_paths(named) == ["marble_core/nowhere.py", "nowhere/x.py", "nowhere.py", "tests/a/"]


def test_no_mark_of_a_source_stands_behind_a_bracket_where_the_site_would_take_the_two_for_a_link() -> None:
    """Such as an interval, [0, 1], before [O]."""
    links = re.compile(r"\][ ]?\[[A-Z]\]")
    assert links.search("over [0, 1] [O]")
    assert not {name: found for name, text in DOCUMENTS.items() if (found := links.findall(FENCED.sub("", text)))}
