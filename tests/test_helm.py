"""The chart: strict lint, every manifest by Kubernetes' own schemas, and its servers, started as it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from conftest import ROOT

CHART = ROOT / "helm" / "marble"
VALUES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "tests" / "helm").glob("*.yaml"))}
Manifest = dict[str, Any]


def render(values: Manifest, name: str = "marble") -> list[Manifest]:
    files = helm_python.Chart.load(str(CHART)).render(values, name=name, namespace="ml")
    documents = [each for path, text in files.items() if not path.endswith("NOTES.txt") for each in yaml.safe_load_all(text)]
    return [each for each in documents if each]


@pytest.fixture(scope="module", params=VALUES)
def rendered(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(VALUES[request.param])


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The name and the template (or the pod) of everything that makes pods."""
    for each in manifests:
        if each["kind"] == "Pod":
            yield each["metadata"]["name"], each
        elif "template" in each.get("spec", {}):
            yield each["metadata"]["name"], each["spec"]["template"]


@pytest.mark.parametrize("values", VALUES)
def test_the_chart_lints_strictly(values: str) -> None:
    report = helm_python.lint(str(CHART), VALUES[values], strict=True)
    assert report["errors"] == [] and [each for each in report["messages"] if each["severity"] > 1] == []


@pytest.mark.parametrize("kubernetes", ["1.28", "1.34"])
def test_every_manifest_is_strictly_valid(rendered: list[Manifest], kubernetes: str) -> None:
    assert len(rendered) >= 3
    for manifest in rendered:
        kubernetes_validate.validate(manifest, kubernetes, strict=True)
    names = [(each["kind"], each["metadata"]["name"], each["metadata"].get("namespace", "ml")) for each in rendered]
    assert len(set(names)) == len(names)
