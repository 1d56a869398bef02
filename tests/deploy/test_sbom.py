"""The list of what an image holds."""

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from paths import ROOT

spec = importlib.util.spec_from_file_location("sbom", ROOT / "images" / "sbom.py")
assert spec is not None and spec.loader is not None
sbom = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sbom)
IDENTITY = "sha256:" + "ab" * 32


def document() -> str:
    inventory = json.loads(subprocess.check_output([sys.executable, "-c", sbom.INVENTORY]))
    return sbom.document(inventory, "registry.example:5000/team/marble-train:1", IDENTITY, "2026-11-30T12:00:00.123456789Z")


def test_an_sbom_names_every_python_and_debian_package_of_the_system_and_is_valid_cyclonedx() -> None:
    text = document()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = {(part["name"], part["version"]) for part in json.loads(text)["components"] if "version" in part}
    assert {(d.name, d.version) for d in importlib.metadata.distributions()} <= found
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package} ${Version}\n"]
    listed = subprocess.check_output(query, text=True) if shutil.which("dpkg-query") else ""
    assert {tuple(line.split()[1:]) for line in listed.splitlines() if line.startswith("installed ")} <= found


def test_an_sbom_says_which_image_it_is_of_and_is_the_same_for_the_same_image() -> None:
    text = document()
    about = json.loads(text)["metadata"]["component"]
    assert (about["name"], about["version"]) == ("registry.example:5000/team/marble-train", "1")
    assert about["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}] and text == document()
