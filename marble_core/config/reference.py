"""The reference of all settings: JSON Schema for editors, and docs/configuration.md. Both come from the fields and their descriptions.

``python -m marble_core.config.reference`` writes docs/configuration.md anew; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from marble_core.config.durations import PATTERN
from marble_core.config.schema import RunConfig

PAGE = """\
# All settings

Written by `python -m marble_core.config.reference` from the fields of `marble_core/config/`; do not edit it by hand. A value is set in
a YAML file (`marble init` writes one with all of them) or by `--set section.key=value`. `marble init --schema` writes the same as JSON
Schema, by which editors complete and check the file. Where a value comes from: [P] the paper (arXiv 2605.06507), [C] its released code,
[N] DiffusionNFT (arXiv 2509.16117), [O] ours.
"""


def json_schema() -> dict[str, Any]:
    """Of a configuration file: sections may be left out, for a preset has them, and a source that is null is left out."""
    schema = RunConfig.model_json_schema()
    schema.pop("required", None)
    for source in ("train", "evaluation"):
        uri = schema["$defs"]["DataConfig"]["properties"][source]
        uri["additionalProperties"] = {"anyOf": [uri["additionalProperties"], {"type": "null"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "MARBLE configuration"}


def as_markdown() -> str:
    """A table for each section: key, values, default, meaning."""
    schema = json_schema()
    parts = [PAGE, *_parts("", schema, schema["$defs"])]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _parts(name: str, section: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    """The table of a section's own keys, then those of the sections in it."""
    inner = {key: of for key, own in section["properties"].items() if (of := _inside(own, definitions))}
    plain = {key: own for key, own in section["properties"].items() if key not in inner}
    said = " ".join(section.get("description", "").split()) if name else ""
    if plain:
        heading = f"## {name}" if name else "## Outside of sections"
        yield "\n".join([heading, "", *([said, ""] if said else []), *_table(plain, definitions)])
    for key, of in inner.items():
        dotted = f"{name}.{key}" if name else key
        many = section["properties"][key].get("type") == "array"
        yield from _parts(f"{dotted}: a list, each of" if many else dotted, of, definitions)


def _inside(own: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a key holds, or holds a list of."""
    ref = own.get("$ref") or own.get("items", {}).get("$ref", "")
    found = definitions.get(ref.rpartition("/")[2])
    return found if found and "properties" in found else None


def _table(properties: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    yield "| key | values | default | meaning |"
    yield "|---|---|---|---|"
    for key, own in properties.items():
        default = json.dumps(own["default"], ensure_ascii=False) if "default" in own else "none: it must be given"
        cells = (
            f"`{key}`",
            _values(own, definitions),
            f"`{default}`" if "default" in own else default,
            own.get("description", ""),
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(own: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The type and bounds in words."""
    if "$ref" in own:
        return own["$ref"].rpartition("/")[2].removesuffix("Config").casefold()
    if "anyOf" in own:
        return " or ".join(_values(each, definitions) for each in own["anyOf"])
    if "enum" in own or "const" in own:
        return ", ".join(f"`{value}`" for value in own.get("enum", [own.get("const")]))
    if own.get("pattern") == PATTERN:
        return "a duration such as `90m`"
    kind = {"integer": "whole number", "string": "text", "boolean": "true, false", "array": "list", "object": "names to values"}
    found = kind.get(own.get("type", ""), own.get("type", "any"))
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return " ".join([found, *(f"{word} {own[bound]:g}" for bound, word in words.items() if bound in own)])


if __name__ == "__main__":
    (Path(__file__).parents[2] / "docs" / "configuration.md").write_text(as_markdown(), encoding="utf-8")
