"""What an image holds, as a CycloneDX file: its Python packages and those of its Debian, with version and licence."""

import json
import subprocess
import uuid
from datetime import datetime
from pathlib import Path

# Runs in the image: it has Python, and nothing that lists packages.
INVENTORY = """
import importlib.metadata, json, pathlib, platform
python = [[d.metadata["Name"], d.version, d.metadata["License-Expression"] or ""] for d in importlib.metadata.distributions()]
status = pathlib.Path("/var/lib/dpkg/status")
debian = []
for entry in status.read_text(encoding="utf-8").split("\\n\\n") if status.exists() else []:
    fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and line[0] != " ")
    if fields.get("Status", "").endswith(" installed"):
        debian.append([fields["Package"], fields["Version"], fields["Architecture"]])
try:
    system = platform.freedesktop_os_release()
except OSError:
    system = {}
print(json.dumps({"python": python, "debian": debian, "system": [system.get("ID", "linux"), system.get("VERSION_ID", "")]}))
"""


def write(engine: str, image: str, folder: Path) -> Path:
    """Write ``folder``/NAME-TAG.cdx.json for ``image``, and return it. The same image gives the same bytes."""
    command = [engine, "run", "--rm", "--network=none", "--entrypoint=python3", image, "-c", INVENTORY]
    inventory = json.loads(subprocess.check_output(command))
    about = json.loads(subprocess.check_output([engine, "image", "inspect", image]))[0]
    file = folder / f"{image.rsplit('/', 1)[-1].replace(':', '-')}.cdx.json"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(document(inventory, image, about["Id"], about["Created"]), encoding="utf-8")
    return file


def document(inventory: dict, image: str, digest: str, created: str) -> str:
    """CycloneDX 1.6 as JSON.

    Args:
        inventory: what ``INVENTORY`` prints.
        image: the image's name and tag.
        digest: its id, ``sha256:...``.
        created: the time of its build, ISO 8601.
    """
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import LicenseExpression
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    name, _, tag = image.rpartition(":")
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_OID, digest))
    bom.metadata.timestamp = datetime.fromisoformat(created)
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest.removeprefix("sha256:"))]
    whole = Component(type=ComponentType.CONTAINER, name=name, version=tag, hashes=hashes, bom_ref="image")
    bom.metadata.component = whole
    system, release = inventory["system"]
    kind = ComponentType.OPERATING_SYSTEM
    bom.components.add(Component(type=kind, name=system, version=release or None, bom_ref="system"))
    for package, version, expression in inventory["python"]:
        url = PackageURL("pypi", None, package.lower().replace("_", "-"), version)
        licenses = [LicenseExpression(expression)] if expression else []
        bom.components.add(Component(name=package, version=version, purl=url, licenses=licenses, bom_ref=str(url)))
    for package, version, architecture in inventory["debian"]:
        url = PackageURL("deb", system, package, version, {"arch": architecture})
        bom.components.add(Component(name=package, version=version, purl=url, bom_ref=str(url)))
    bom.register_dependency(whole, bom.components)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"
