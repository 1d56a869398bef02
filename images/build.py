"""Build the images of the stages, marble-prepare, -train, -evaluate and -register, and the command line's: what `make images` runs.

    python images/build.py --registry registry.example/team --base-image python:3.11-slim

Nothing but pip's own index is asked, inside the build, with this machine's settings of pip. Without --base-image a small
Debian is made on the spot, which needs debootstrap and root.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import extra
import pip
import sbom

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from marble_kubeflow.pipelines.image_names import IMAGES, reference

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "marble_core", "marble_kubeflow")
OWN_BASE = "marble-base:bookworm"
# Of a Debian with python3: what no stage needs. Without perl and apt nothing can be installed; which is what a base is chosen for.
NEEDLESS = (
    *(
        "var/lib/apt",
        "var/cache",
        "var/log",
        "var/lib/dpkg/info",
        "usr/lib/apt",
        "usr/lib/valgrind",
        "usr/lib/python3.11/pydoc_data",
    ),
    *("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/perl5", "usr/share/zoneinfo/right"),
    *("usr/bin/perl*", "usr/bin/apt*", "usr/lib/*/perl-base", "usr/lib/*/gconv", "usr/lib/*/libapt-*"),
)


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="marble-images-") as scratch:
        base = options.base_image or debian(options.engine, Path(scratch) / "debian")
        context = Path(scratch) / "context"
        torch = fill(context, options.torch)
        may_run = extra.bring(options.extra, context / "extra")
        for image in options.only or IMAGES:
            name = reference(image, options.registry, options.tag)
            settings = {"BASE_IMAGE": base, "TORCH": torch, "VERSION": version(), "REVISION": revision()}
            settings["MAY_RUN"] = ",".join(may_run)
            arguments = [f"--build-arg={key}={value}" for key, value in settings.items()]
            _run(options.engine, "build", *arguments, *options.flags.split(), "--tag", name, "--file", str(context / image / "Dockerfile"), str(context))  # fmt: skip
    for image in options.only or IMAGES:
        name = reference(image, options.registry, options.tag)
        listed = sbom.write(options.engine, name, ROOT / "build" / "sbom")
        print(
            f"{name}  {identity(options.engine, name)}  {size(options.engine, name) / 1e6:.0f} MB  {listed.relative_to(ROOT)}"
        )


def version() -> str:
    line = next(
        line
        for line in (ROOT / "marble_core" / "__init__.py").read_text(encoding="utf-8").splitlines()
        if "__version__" in line
    )
    return line.split('"')[1]


def revision() -> str:
    """The commit, with "-dirty" where files differ from it."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return said.stdout.strip() or "unknown"


def size(engine: str, name: str) -> int:
    """Bytes, the base included."""
    return int(subprocess.check_output([engine, "image", "inspect", "--format", "{{.Size}}", name]))


def identity(engine: str, name: str) -> str:
    """The image's id, ``sha256:...``. A registry's digest, which a push prints, is another: that of its manifest."""
    return subprocess.check_output([engine, "image", "inspect", "--format", "{{.Id}}", name], text=True).strip()


def fill(context: Path, torch: str) -> str:
    """Put into ``context`` what the Dockerfiles copy, and return what pip is to install inside as torch."""
    shutil.copytree(ROOT / "images", context, ignore=shutil.ignore_patterns("*.py", "*.md", "__pycache__"))
    tools = context / "tools"
    tools.mkdir()
    (context / "install.sh").rename(tools / "install.sh")
    shutil.copy(ROOT / "images" / "install_extra.py", tools)
    shutil.copy(ROOT / "constraints.hashes.txt", tools)
    shutil.copytree(Path(pip.__file__).parent, tools / "pip", ignore=shutil.ignore_patterns("__pycache__"))
    (tools / "pip.conf").write_text(_pip_settings(tools), encoding="utf-8")
    wheel(context)
    if not torch:
        return "--no-deps --require-hashes --requirement /build/torch.txt"
    if not torch.endswith(".whl") or "://" in torch:
        return torch
    shutil.copy(torch, context)
    return f"/build/{Path(torch).name}"


def wheel(target: Path) -> None:
    """Build marble_core's wheel: of the same sources always the same bytes, so that unchanged layers stay what they are."""
    with tempfile.TemporaryDirectory(
        prefix="marble-wheel-"
    ) as scratch:  # beside the sources, setuptools would take up old files
        for name in SOURCES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(
                ROOT / name,
                Path(scratch) / name,
                **({"ignore": shutil.ignore_patterns("__pycache__")} if copy is shutil.copytree else {}),
            )
        env = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}  # 1980, where zip's time begins
        _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", f"--wheel-dir={target}", scratch, env=env)  # fmt: skip


def debian(engine: str, root: Path) -> str:
    """A Debian with python3 and certificates as an image, made if there is none yet."""
    if subprocess.run([engine, "image", "inspect", OWN_BASE], check=False, capture_output=True).returncode == 0:
        return OWN_BASE
    if shutil.which("debootstrap") is None or os.getuid() != 0:
        sys.exit(
            "Making a base image needs debootstrap and root: name one that has python3, such as BASE_IMAGE=python:3.11-slim."
        )
    _run("debootstrap", "--variant=minbase", "--include=python3,ca-certificates", "bookworm", str(root))
    for path in (path for pattern in NEEDLESS for path in root.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as archive:
        subprocess.run([engine, "import", "-", OWN_BASE], stdin=archive.stdout, check=True)
    return OWN_BASE


def _pip_settings(tools: Path) -> str:
    """This machine's settings of pip that a build needs, as a pip.conf; its certificates are copied beside it."""
    said = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    found = {}
    for line in said.splitlines():  # global.index-url='https://...'; the environment's (":env:.") come last
        key, _, value = line.partition("=")
        found[key.rpartition(".")[2]] = value.strip("'")
    if certificates := found.get("cert"):
        shutil.copy(certificates, tools / "certificates.pem")
        found["cert"] = "/build/certificates.pem"
    passed = [
        name
        for name in ("index-url", "extra-index-url", "trusted-host", "proxy", "cert")
        if "file:" not in found.get(name, "file:")
    ]
    return "\n".join(["[global]", *(f"{name} = {found[name]}" for name in passed), ""])


def _run(*command: str, env: dict[str, str] | None = None) -> None:
    if code := subprocess.run(command, check=False, env=env).returncode:
        sys.exit(f"This failed with exit code {code}: {' '.join(command)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build the images of the stages, and the command line's.")
    parser.add_argument("--registry", default="", help="prefix of the names: registry.example/team")
    parser.add_argument("--tag", default=version())
    parser.add_argument("--base-image", default="", help="an image with python3 (default: a small Debian, made here)")
    parser.add_argument(
        "--torch", default="", help="what pip installs as torch, with options, or a wheel's path (default: PyPI's, by its hash)"
    )
    parser.add_argument("--only", nargs="+", choices=IMAGES, help="these alone (default: all)")
    parser.add_argument("--engine", default="docker", help="docker or podman")
    parser.add_argument("--extra", type=Path, help="the directory of a package of your own, for prepare, train and evaluate")
    parser.add_argument("--flags", default="", help="further options of `docker build`")
    return parser.parse_args()


if __name__ == "__main__":
    main()
