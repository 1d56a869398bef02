"""The wheel: what is in it, and that it finds its own pipeline beside a user's packages ``pipelines`` and ``components``."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from installing import PIP, call, copy_checkout, sdist_of, wheel_of
from paths import ROOT

FOLDERS = {"marble_core": "marble_core", "pipelines": "marble_kubeflow/pipelines", "components": "marble_kubeflow/components"}

IMPORT_EVERY_MODULE = """
import importlib, pkgutil
import marble_core, marble_kubeflow
names = [module.name for module in pkgutil.walk_packages(marble_kubeflow.__path__, "marble_kubeflow.")]
modules = [marble_core, marble_kubeflow, *map(importlib.import_module, names)]
print(*(module.__file__ for module in modules), sep="\\n")
"""
OF_THE_IMAGES = "import pathlib, sys, build; build.wheel(pathlib.Path(sys.argv[1]))"

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel. Its dependencies are those of the environment that runs the tests, where marble-core's
    own entry stands behind the wheel's."""
    directory = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", directory, cwd=directory)
    (packages,) = directory.glob("lib/python3*/site-packages")
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(shared))
    call(*PIP, "--python", directory / "bin" / "python", "install", "--no-deps", "--no-index", "--no-compile", "--ignore-installed", wheel, cwd=directory)  # fmt: skip
    return directory


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """A folder whose own packages ``pipelines`` and ``components`` must not be imported."""
    for name in ("pipelines", "components"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('the package {name} of the user was imported')\n")
    return tmp_path


@pytest.fixture(params=["marble", "python -m"])
def marble(request: pytest.FixtureRequest, environment: Path, users_folder: Path) -> Call:
    """The command in the user's folder. ``python -m`` puts this folder before all others on the module path."""
    bin_ = environment / "bin"
    command = [bin_ / "marble"] if request.param == "marble" else [bin_ / "python", "-m", "marble_core.cli"]
    return lambda *arguments: call(*command, *arguments, cwd=users_folder)


@pytest.mark.parametrize("built_from", ["checkout", "sdist", "images"])
def test_the_wheel_has_every_file_of_the_sources_below_two_top_level_names(
    built_from: str, wheel: Path, checkout: Path, tmp_path: Path
) -> None:
    if built_from == "sdist":
        wheel = wheel_of(sdist_of(checkout, tmp_path), tmp_path)
    elif built_from == "images":
        call(sys.executable, "-c", OF_THE_IMAGES, tmp_path, cwd=ROOT / "images")
        (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in packed} == {"marble_core", "marble_kubeflow"}
    expected = {"marble_kubeflow/__init__.py": (ROOT / "marble_kubeflow" / "__init__.py").read_bytes()}
    for folder, name in FOLDERS.items():
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        expected |= {f"{name}/{path.relative_to(ROOT / folder).as_posix()}": path.read_bytes() for path in files}
    assert packed.keys() == expected.keys()
    assert packed == expected


def test_beside_a_users_pipelines_and_components_compile_and_submit_use_ours(marble: Call, users_folder: Path) -> None:
    marble("compile", "--output", "pipeline.yaml")
    assert (users_folder / "pipeline.yaml").read_bytes() == (ROOT / "pipelines" / "marble.yaml").read_bytes()
    assert '"run_id": "mine"' in marble("submit", "--run-id", "mine", "--dry-run").stdout


def test_beside_a_users_pipelines_and_components_run_shows_its_help(marble: Call) -> None:
    assert "--containers" in marble("run", "--help").stdout


def test_every_module_of_the_pipeline_is_the_wheels(environment: Path, users_folder: Path) -> None:
    """Among them marble_kubeflow.pipelines.local, which ``marble run`` starts as a process in the user's folder."""
    files = call(environment / "bin" / "python", "-c", IMPORT_EVERY_MODULE, cwd=users_folder).stdout.splitlines()
    assert any(file.endswith("marble_kubeflow/pipelines/local.py") for file in files)
    assert [file for file in files if not file.startswith(f"{environment}/lib/")] == []
