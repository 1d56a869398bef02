"""A team's own package for the images: its wheel, and what a run may name of it. What `make images EXTRA=DIR` puts in."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Of a directory without a pyproject.toml: its modules and packages, and requirements.txt as what they need.
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "marble-extra"
version = "0"
dynamic = ["dependencies"]
[tool.setuptools]
py-modules = {modules}
packages = {packages}
include-package-data = true
[tool.setuptools.package-data]
"*" = ["*"]
[tool.setuptools.dynamic]
dependencies = {{file = ["requirements.txt"]}}
"""


def bring(directory: Path | None, target: Path) -> tuple[str, ...]:
    """Make the directory ``target``, with the wheel of ``directory`` in it where one is given. Returns the wheel's top-level modules."""
    target.mkdir()
    if directory is None:
        return ()
    if not directory.is_dir():
        sys.exit(f"EXTRA = {directory} is no directory: give the one that holds your package or its pyproject.toml.")
    options = ["--no-deps", "--quiet", f"--wheel-dir={target}"]
    with tempfile.TemporaryDirectory(prefix="marble-extra-") as scratch:
        project = Path(scratch) / "project"  # beside the sources, setuptools would leave files
        shutil.copytree(
            directory, project, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build", ".git", ".venv")
        )
        if not any((project / name).exists() for name in ("pyproject.toml", "setup.py")):
            _as_project(project)
            options.append("--no-build-isolation")
        if code := subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(project)], check=False).returncode:
            sys.exit(f"EXTRA = {directory} cannot be built as a wheel: pip ended with exit code {code}.")
    (wheel,) = target.glob("*.whl")
    names = modules_of(wheel)
    if not names or "marble_core" in names or "marble_kubeflow" in names:
        sys.exit(f"EXTRA = {directory} holds {', '.join(names) or 'no module'}: give the directory of a package of your own.")
    return names


def modules_of(wheel: Path) -> tuple[str, ...]:
    with zipfile.ZipFile(wheel) as archive:
        firsts = {name.partition("/")[0] for name in archive.namelist()}
    return tuple(sorted(stem for name in firsts if (stem := name.removesuffix(".py")).isidentifier()))


def _as_project(project: Path) -> None:
    packages = [str(p.parent.relative_to(project)).replace("/", ".") for p in sorted(project.rglob("__init__.py"))]
    modules = [p.stem for p in sorted(project.glob("*.py")) if p.name != "__init__.py"]
    (project / "requirements.txt").touch()
    (project / "pyproject.toml").write_text(PROJECT.format(modules=modules, packages=packages), encoding="utf-8")
