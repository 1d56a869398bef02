"""A release up to the point where it would be published: what `make release` runs.

Raises SystemExit, with one sentence, where the version is not the same everywhere or the checkout has changes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "helm" / "marble"
sys.path.insert(0, str(ROOT))
from marble_kubeflow.pipelines.image_names import IMAGES, reference

VERSIONS = {  # where the version stands, and how
    "marble_core/__init__.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
    "CHANGELOG.md": r"^## (\S+)",
    "helm/marble/Chart.yaml": r"^version: (.+)$",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--registry", default="")
    parser.add_argument("--engine", default="docker")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    version = agreed_version(ROOT)
    if changed := subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout:
        raise SystemExit(f"The checkout has changes, {changed.split()[1]} for one: commit them first.")
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    for kind in ("sdist", "wheel"):
        build(kind, options.out)
    pack_chart(options.out / f"marble-{version}.tgz")
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in sorted(options.out.iterdir())]
    (options.out / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(*lines, sep="\n")
    images = [reference(image, options.registry, version) for image in IMAGES]
    for image in images:
        print(f"{image}  {digest(options.engine, image)}")
    print("\nNothing was published. What would publish it:")
    if f"## {version} (unreleased)" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
        print(f"  write the date for (unreleased) behind {version} in CHANGELOG.md, commit it, and make release again")
    print(f"  git tag v{version} && git push origin v{version}", "  twine upload dist/*.whl dist/*.tar.gz", sep="\n")
    print(*(f"  {options.engine} push {image}" for image in images if options.registry), sep="\n")
    print(f"  helm push dist/marble-{version}.tgz oci://{options.registry or 'REGISTRY'}")


def agreed_version(root: Path) -> str:
    """The one version that all files name."""
    found = {}
    for file, pattern in VERSIONS.items():
        match = re.search(pattern, (root / file).read_text(encoding="utf-8"), re.MULTILINE)
        if match is None:
            raise SystemExit(f"{file} names no version.")
        found[file] = match[1]
    (first, version), *others = found.items()
    for file, other in others:
        if other != version:
            raise SystemExit(f"{first} names version {version}, but {file} {other}: set them equal.")
    return version


def build(kind: str, out: Path) -> None:
    """In a copy, because a build leaves files beside its sources. A wheel has the same bytes each time: its times are the commit's."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    copy = out / "source"
    files = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        archive.extractall(copy, filter="tar")
    epoch = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)],
        cwd=copy,
        env={**os.environ, "SOURCE_DATE_EPOCH": epoch},
        capture_output=True,
        text=True,
        check=False,
    )
    shutil.rmtree(copy)
    if done.returncode:
        raise SystemExit(f"The {kind} cannot be built: {done.stderr.strip().splitlines()[-1]}")


def pack_chart(file: Path) -> None:
    """As `helm package` lays it out; the same bytes from the same commit."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted(p for p in CHART.rglob("*") if p.is_file()):
            entry = tarfile.TarInfo(f"marble/{path.relative_to(CHART).as_posix()}")
            entry.size = path.stat().st_size
            archive.addfile(entry, io.BytesIO(path.read_bytes()))
    file.write_bytes(gzip.compress(packed.getvalue(), mtime=0))


def digest(engine: str, image: str) -> str:
    """The id of the image on this machine's engine."""
    try:
        done = subprocess.run(
            [engine, "image", "inspect", "--format", "{{.Id}}", image], capture_output=True, text=True, check=False
        )
    except OSError:
        return f"({engine} is not here)"
    return done.stdout.strip() if done.returncode == 0 else "(not built here: make images)"


if __name__ == "__main__":
    main()
