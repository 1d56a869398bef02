"""Wheels and sdists of a copy of the checkout, and environments that hold one, without the network."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from paths import ROOT

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "marble_core", "marble_kubeflow", "pipelines", "components")
PIP = (sys.executable, "-m", "pip", "--quiet")
SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


def call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Without PYTHONPATH, on which the checkout is."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def copy_checkout(target: Path) -> Path:
    """A copy, because a build leaves files beside its sources."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    return target


def wheel_of(source: Path, target: Path) -> Path:
    """Of a checkout or an sdist."""
    call(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source, cwd=target)
    (wheel,) = target.glob("*.whl")
    return wheel


def sdist_of(checkout: Path, target: Path) -> Path:
    return target / call(sys.executable, "-c", SDIST, target, cwd=checkout).stdout.splitlines()[-1]


def closure(*requirements: str) -> dict[str, Distribution]:
    """The distributions that these requirements need, by name, as they are installed here."""
    found: dict[str, Distribution] = {}
    waiting, seen = [Requirement(text) for text in requirements], set()
    while waiting:
        needed = waiting.pop()
        key = needed.name.lower(), frozenset(needed.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            found[needed.name.lower()] = dist = distribution(needed.name)
        except PackageNotFoundError:
            continue  # for another platform, or there under another name
        for text in _ours(needed.extras) if needed.name == "marble-core" else dist.requires or ():
            inner = Requirement(text)
            if any(inner.marker is None or inner.marker.evaluate({"extra": extra}) for extra in needed.extras or {""}):
                waiting.append(inner)
    return found


def _ours(extras: set[str]) -> list[str]:
    """Of pyproject.toml, which the installed record of an editable checkout may be behind."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]


def link(packages: dict[str, Distribution], site: Path) -> None:
    """Each file of the packages at its place below ``site``; whole folders where they are one package's own."""
    for dist in packages.values():
        root = Path(str(dist.locate_file("")))
        for file in dist.files or ():
            source, target = root / file, site / file
            if ".." in file.parts or "__pycache__" in file.parts or not source.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                os.symlink(source, target)


def make_plain(directory: Path, wheel: Path) -> Path:
    """The python of a new environment, with the wheel and, of all that is installed here, the closure of its dependencies without an
    extra, as links: what an extra brings cannot be imported."""
    venv.create(directory, with_pip=False, symlinks=True)
    (site,) = directory.glob("lib/python3*/site-packages")
    shutil.rmtree(site)
    site.mkdir()
    python = directory / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run([*install, "--no-compile"], check=True, cwd=directory)
    (dist,) = [d for d in Distribution.discover(path=[str(site)]) if d.metadata["Name"] == "marble-core"]
    link(closure(*[text for text in dist.requires or () if "extra ==" not in text]), site)
    return python
