"""What is in the images, and what is not."""

import json
import re
import subprocess

import pytest

from engine import MARKS, STAGES, TAG, docker, in_image
from marble_core import __version__
from paths import ROOT

pytestmark = pytest.mark.containers

LIMITS = {"prepare": 300e6, "register": 400e6, "cli": 350e6}
INSTALLED = """
import importlib.metadata, json
print(json.dumps([[d.metadata["Name"], d.version] for d in importlib.metadata.distributions()]))
"""
WHEEL = """
import hashlib, importlib.metadata, json, pathlib
import marble_core
d = importlib.metadata.distribution("marble-core")
url = json.loads(d.read_text("direct_url.json"))
root = pathlib.Path(marble_core.__file__).parent
files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix != ".pyc")
print(url["archive_info"]["hashes"]["sha256"], hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest())
"""
TOOLS = """
import importlib.util, shutil
names = ("gcc", "g++", "cc", "c++", "clang", "ld", "as", "make", "cmake", "ninja", "git", "pip", "pip3", "uv", "apt-get")
print(*[n for n in names if shutil.which(n)], *[n for n in ("pip", "ensurepip") if importlib.util.find_spec(n)])
"""
WRITABLE = """
import os, tempfile
assert os.getcwd() == tempfile.gettempdir() == os.path.expanduser("~") == "/scratch"
tempfile.TemporaryFile()
try:
    open("/opt/stage/x", "w")
except OSError as error:
    print(error.strerror)
"""


COMMANDS = """
import importlib.util, subprocess
for order in (["compile", "--output", "/scratch/p.yaml"], ["schedule", "create", "--dry-run", "--cron=0 3 * * *", "nightly", "/scratch/p.yaml"]):
    print(subprocess.run(["marble", *order], capture_output=True, text=True, check=True).stdout)
print("found:", [name for name in ("torch", "docker", "pandas") if importlib.util.find_spec(name)])
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_small_images_are_small(images: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {stage: int(docker("image", "inspect", "--format", "{{.Size}}", image)) for stage, image in images.items()}
    with capsys.disabled():
        print("\n" + ", ".join(f"{images[stage]} {size / 1e6:.0f} MB" for stage, size in sizes.items()))
    assert all(sizes[stage] <= limit for stage, limit in LIMITS.items())


@pytest.mark.parametrize("stage", STAGES)
def test_an_image_holds_its_own_stages_packages_and_no_other(images: dict[str, str], stage: str) -> None:
    found = {(normal(name), version) for name, version in json.loads(in_image(images[stage], INSTALLED))}
    lines = (ROOT / "images" / stage / "requirements.txt").read_text().splitlines()
    wanted = {(normal(name), version) for name, _, version in (line.partition("==") for line in lines if "==" in line)}
    names = {name for name, _ in found - wanted}
    # A CUDA build of torch brings its own libraries.
    extra = {n for n in names if not n.startswith(("nvidia-", "cuda-"))} - (
        {"torch", "triton"} if stage in ("train", "evaluate") else set()
    )
    assert wanted <= found and extra == {"marble-core", "kfp"}
    here = {name for name, _ in found}
    assert here.isdisjoint({"prepare": {"torch", "diffusers"}, "register": {"torch", "tokenizers"}, "train": {"matplotlib"}, "evaluate": {"cvxpy"}}[stage])  # fmt: skip


@pytest.mark.parametrize("image", (*STAGES, "cli"))
def test_the_sbom_of_an_image_names_that_image_and_every_package_in_it(images: dict[str, str], image: str) -> None:
    listed = json.loads((ROOT / "build" / "sbom" / f"marble-{image}-{TAG}.cdx.json").read_text(encoding="utf-8"))
    (digest,) = (entry["content"] for entry in listed["metadata"]["component"]["hashes"])
    assert docker("image", "inspect", "--format", "{{.Id}}", images[image]) == f"sha256:{digest}"
    found = {(normal(part["name"]), part.get("version")) for part in listed["components"]}
    assert {(normal(name), version) for name, version in json.loads(in_image(images[image], INSTALLED))} <= found
    assert {"python3", "ca-certificates"} <= {name for name, _ in found}


def test_the_command_lines_image_compiles_and_orders_and_holds_nothing_of_a_stage(images: dict[str, str]) -> None:
    said = in_image(images["cli"], COMMANDS)
    assert '"cron": "0 0 3 * * *"' in said and said.endswith("found: []")


def test_marble_core_is_the_same_wheel_in_all(images: dict[str, str]) -> None:
    assert len({in_image(image, WHEEL) for image in images.values()}) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_no_image_has_a_compiler_or_an_installer(images: dict[str, str], stage: str) -> None:
    assert in_image(images[stage], TOOLS) == ""


@pytest.mark.parametrize("stage", STAGES)
def test_any_user_works_on_a_read_only_root_with_one_place_to_write(images: dict[str, str], stage: str) -> None:
    assert in_image(images[stage], WRITABLE) == "Read-only file system"


def test_train_and_evaluate_share_every_layer_but_the_last(images: dict[str, str]) -> None:
    train, evaluate = (json.loads(docker("image", "inspect", images[s]))[0]["RootFS"]["Layers"] for s in ("train", "evaluate"))
    assert train[:-1] == evaluate[:-1] and train[-1] != evaluate[-1]


@pytest.mark.parametrize("stage", STAGES)
def test_an_image_says_what_it_is_and_does_not_run_as_root(images: dict[str, str], stage: str) -> None:
    settings = json.loads(docker("image", "inspect", images[stage]))[0]["Config"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in settings["Labels"].items()}
    assert settings["User"] == "10001" and labels["title"] == f"marble-{stage}" and labels["version"] == __version__
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["revision"])
    assert f"MARBLE_GIT_COMMIT={labels['revision']}" in settings["Env"]


def test_no_image_holds_a_credential_or_setting_of_the_machine_that_built_it(images: dict[str, str]) -> None:
    """Every byte of every layer and of the images' histories is looked at."""
    patterns = [option for mark in (*MARKS.values(), "/build/certificates.pem", "PIP_CERT") for option in ("-e", mark)]
    with subprocess.Popen(["docker", "save", *images.values()], stdout=subprocess.PIPE) as saved:
        found = subprocess.run(
            ["grep", "-a", "-o", "-F", *patterns], stdin=saved.stdout, capture_output=True, text=True, check=False
        )
    assert saved.returncode == 0 and found.returncode == 1, found.stdout[:1000]
