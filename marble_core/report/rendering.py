"""From a template of this directory to a page."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from marble_core.report import words
from marble_core.report.drawing import colour


def render(template: str, **values: Any) -> str:
    """The page. Everything in ``values`` is escaped but what the template passes through ``svg`` or ``raw``; a name that lacks is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("marble_core.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": words.signed,
        "number": words.number,
        "typeset": words.typeset,
        "svg": Markup,
        "raw": Markup,
    }
    environment.globals["framed"] = files("marble_core.tracking").joinpath("framed.js").read_text(encoding="utf-8")
    environment.globals |= {"arrows": words.ARROWS, "colour": colour, "effect": words.effect}
    return environment.get_template(template).render(**values)
