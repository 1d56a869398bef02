"""A package of the user's own: into the images with what it needs, onto the list of what a run may name, and into containers here."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from marble_core.config.imports import MAY_RUN, import_class
from marble_core.types import MarbleError
from marble_kubeflow.pipelines.containers import own_roots
from paths import ROOT

BRING = "import pathlib, sys, extra; print(*extra.bring(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])))"
PROJECT = (
    '[project]\nname = "{name}"\nversion = "{version}"\ndependencies = {needs}\n[tool.setuptools]\npackages = ["{name}"]\n'
)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """pip asks no index, but the directory of wheels here; nor does it fetch what builds a wheel."""
    (tmp_path / "index").mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "index"), "NO_BUILD_ISOLATION": "0"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)


def package(directory: Path, name: str, version: str = "1", needs: str = "[]") -> Path:
    """A project with a pyproject.toml."""
    (directory / name).mkdir(parents=True)
    (directory / name / "__init__.py").write_text(f"VERSION = {version!r}\n")
    (directory / "pyproject.toml").write_text(PROJECT.format(name=name, version=version, needs=needs))
    return directory


def bring(directory: Path, target: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", BRING, str(directory), str(target)],
        cwd=ROOT / "images",
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.strip(), done.stderr


def folder(directory: Path, needs: str = "") -> Path:
    """Modules and packages as they lie in a folder, with data and what they need."""
    (directory / "warmth" / "tables").mkdir(parents=True)
    (directory / "warmth" / "__init__.py").write_text("")
    (directory / "warmth" / "tables" / "__init__.py").write_text("")
    (directory / "warmth" / "tables" / "red.json").write_text("[1]")
    (directory / "cold.py").write_text("class Cold: ...\n")
    (directory / "requirements.txt").write_text(needs)
    return directory


def test_a_project_and_a_folder_of_modules_become_a_wheel_and_say_their_top_level_modules(tmp_path):
    assert bring(package(tmp_path / "one", "my_rewards"), tmp_path / "a")[:2] == (0, "my_rewards")
    source = folder(tmp_path / "two", "numpy>=1\n")
    before = sorted(source.rglob("*"))
    assert bring(source, tmp_path / "b")[:2] == (0, "cold warmth")
    assert sorted(source.rglob("*")) == before, "a build leaves nothing beside the sources"


@pytest.mark.parametrize("wrong", ["absent", "empty", "ours"])
def test_what_is_no_package_of_ones_own_ends_the_build_with_a_sentence(wrong, tmp_path):
    if wrong != "absent":
        (tmp_path / wrong).mkdir()
    if wrong == "ours":
        (tmp_path / "ours" / "marble_core.py").write_text("")
    code, _, said = bring(tmp_path / wrong, tmp_path / "target")
    assert code == 1 and said.startswith(f"EXTRA = {tmp_path / wrong} ") and said.count("\n") == 1


@pytest.fixture
def image(tmp_path):
    """An environment that stands for an image's: it holds ``here`` 1, and installs below ``stage``."""
    venv.create(tmp_path / "image", with_pip=True)
    python = tmp_path / "image" / "bin" / "python"
    made = bring(package(tmp_path / "src-here", "here"), tmp_path / "here")
    assert made[0] == 0, made
    subprocess.run([python, "-m", "pip", "--quiet", "install", "--no-deps", *(tmp_path / "here").glob("*.whl")], check=True)
    for name, version in (("needed", "1"), ("here", "2")):
        assert bring(package(tmp_path / f"src-{name}-{version}", name, version), tmp_path / f"{name}-{version}")[0] == 0
        for wheel in (tmp_path / f"{name}-{version}").glob("*.whl"):
            wheel.rename(tmp_path / "index" / wheel.name)

    def install(what: str, needs: str) -> tuple[int, list[str], str]:
        wheels, stage = tmp_path / f"wheels-{what}", tmp_path / f"stage-{what}"
        assert bring(folder(tmp_path / f"folder-{what}", needs), wheels)[0] == 0
        script = ROOT / "images" / "install_extra.py"
        done = subprocess.run(
            [python, script, "alone" if what == "alone" else "all", wheels, stage], capture_output=True, text=True, check=False
        )
        found = sorted(p.name for p in stage.glob("*") if not p.name.endswith("-info")) if stage.exists() else []
        return done.returncode, [name for name in found if name != "__pycache__"], done.stderr

    return install


def test_train_and_evaluate_get_the_package_and_what_it_needs_and_prepare_the_package_alone(image, tmp_path):
    assert image("all", "needed\nhere\n") == (0, ["cold.py", "needed", "warmth"], "")
    assert (tmp_path / "stage-all" / "warmth" / "tables" / "red.json").read_text() == "[1]"
    assert image("alone", "needed\nhere\n") == (0, ["cold.py", "warmth"], "")
    code, found, said = image("another", "here>=2\n")
    assert code == 1 and found == [] and "here" in said and "onflict" in said, "nothing that the image has is replaced"


def test_import_paths_lead_only_where_the_image_allows(monkeypatch, tmp_path):
    monkeypatch.setenv(MAY_RUN, "warmth,cold")
    with pytest.raises(
        MarbleError, match="'subprocess:Popen' may not be run here, for MARBLE_MAY_RUN allows marble_core, warmth, cold;"
    ):
        import_class("subprocess:Popen", "The reward 'mine'")
    with pytest.raises(MarbleError, match=r"'warmth.red:Red' cannot be imported"):
        import_class("warmth.red:Red", "The reward 'mine'")
    monkeypatch.setenv(MAY_RUN, "")
    with pytest.raises(MarbleError, match="may not be run here"):
        import_class("marble_core_of_mine:Popen", "The reward 'mine'")
    assert import_class("marble_core.types:NoValue", "x").__name__ == "NoValue"
    for open_to_all in ("*", None):
        monkeypatch.setenv(MAY_RUN, open_to_all) if open_to_all else monkeypatch.delenv(MAY_RUN)
        assert import_class("subprocess:Popen", "x") is subprocess.Popen


def test_containers_here_see_the_directories_of_the_python_path_but_no_environment_and_not_this_package(tmp_path):
    mine, other = folder(tmp_path / "mine"), tmp_path / "lib" / "site-packages"
    other.mkdir(parents=True)
    path = os.pathsep.join(map(str, ["", mine, other, ROOT, tmp_path / "absent", mine / "cold.py"]))
    assert own_roots(path) == [mine.resolve()]
