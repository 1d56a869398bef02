"""The chart, rendered with each file of values in tests/helm."""

from __future__ import annotations

from typing import Any

import helm_python
import yaml

from paths import ROOT, TESTS

CHART = ROOT / "helm" / "marble"
VALUES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((TESTS / "helm").glob("*.yaml"))}
Manifest = dict[str, Any]


def render(values: Manifest, name: str = "marble") -> list[Manifest]:
    files = helm_python.Chart.load(str(CHART)).render(values, name=name, namespace="ml")
    documents = [each for path, text in files.items() if not path.endswith("NOTES.txt") for each in yaml.safe_load_all(text)]
    return [each for each in documents if each]
