"""What the site needs of mkdocs beyond mkdocs.yml: a hook for links, and an extension of mkdocstrings for the examples of docstrings."""

import re
from pathlib import Path
from typing import Any

import griffe

LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


class Examples(griffe.Extension):
    """The section that our docstrings call Example is griffe's Examples, whose lines are code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """A link to what is no page, such as a file of the code, becomes its words: on the site it leads nowhere."""
    docs = Path(config.docs_dir).resolve()
    here = Path(page.file.abs_src_path).parent

    def shown(link: re.Match[str]) -> str:
        target = (here / link[2]).resolve()
        leads = ":" in link[2] or (target.is_relative_to(docs) and target.suffix in (".md", ".png"))
        return link[0] if leads or not target.exists() else link[1]  # what is not there at all stays, and fails the build

    return LINK.sub(shown, markdown)
