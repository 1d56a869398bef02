"""Where a model, a reward checkpoint or a head lies, and how it comes to this machine. No torch.

    demo://rewards/clip                            inside this package
    /models/clip, heads/aesthetic.pth              a directory or a file
    organisation/name                              a repository of the hub, at its main revision
    hf://organisation/name@revision/path/file.pt   a revision, or one file of a repository; both may be left out
    s3://bucket/path                               an object, or all objects below a prefix
    https://host/path/file.pth                     a published file

What comes from elsewhere lies in the model cache, which is the hub's own (HF_HOME, HF_HUB_CACHE, HF_ASSETS_CACHE). What is
complete there is used as it is, without the network, also if HF_HUB_OFFLINE is not set; of an object in S3 it is asked whether
it has changed. ``marble fetch`` brings what a configuration needs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from marble_core.storage.artifacts import Part, Remote, refuse_code
from marble_core.types import MarbleError, Outage

DEMO = "demo://"
SCHEMES = (DEMO, "hf://", "s3://", "https://", "http://")
WEIGHTS = Path(str(files("marble_core"))) / "demo" / "weights"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_HUB_URI = re.compile(r"hf://(?P<repo>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[^/@]+))?(/(?P<file>.+[^/]))?/?")


def resolve(uri: str, part: Part = Part.MODEL, revision: str | None = None) -> Path:
    """The directory or file on this machine that ``uri`` names, brought into the model cache where it is not yet.

    ``revision`` is a hub repository's, unless the uri has one. Raises MarbleError, in one sentence, for a name or a path that
    there is none of, for a model that is gated, and where the network is needed and not there.
    """
    found = find(uri, part, revision)
    return found if isinstance(found, Path) else found.cached() or found.fetch()


def find(uri: str, part: Part = Part.MODEL, revision: str | None = None) -> Path | Remote:
    """The place on this machine, or what has to be asked for it. Asks nobody."""
    if uri.startswith(DEMO):
        return _demo(uri)
    if uri.startswith("s3://"):
        from marble_core.storage.downloads import S3Asset

        return S3Asset(uri)
    if uri.startswith(("https://", "http://")):
        from marble_core.storage.downloads import WebFile

        return WebFile(uri)
    path = Path(uri).expanduser()
    if uri and path.exists():
        return path
    return _hub(uri, part, revision)


def check_access(uri: str, part: Part = Part.MODEL, revision: str | None = None) -> str | None:
    """Raises MarbleError where a name is wrong, a hub's repository is not for this account, or a base model is none or brings code,
    which is known on any machine before a GPU is asked for. Returns what to tell the user where the hub or S3 cannot be asked."""
    from marble_core.storage.hub import HubRepository

    found = find(uri, part, revision)
    here = found if isinstance(found, Path) else found.cached() if isinstance(found, HubRepository) else None
    if here is not None and part == Part.PIPELINE:
        require_pipeline(here, uri)
    if uri.startswith("s3://") and part == Part.PIPELINE:
        from marble_core.storage.downloads import S3Asset

        try:
            _require_pipeline(S3Asset(uri).names(), uri)
        except Outage as error:
            return f"Whether {uri} can be had is not known: {error}"
    return found.refuse() if isinstance(found, HubRepository) and here is None else None


def require_pipeline(directory: Path, uri: str) -> None:
    patterns = ("model_index.json", "*.py", "*/*")
    _require_pipeline([str(file.relative_to(directory)) for pattern in patterns for file in directory.glob(pattern)], uri)


def _require_pipeline(names: Sequence[str], uri: str) -> None:
    """``names`` are the files of a base model, relative to it."""
    if "model_index.json" not in names:
        raise MarbleError(f"The base model {uri} has no model_index.json; give a directory that diffusers saved.")
    refuse_code(uri, [name for name in names if name.count("/") <= 1 and name != "model_index.json"])


def portable(uri: str) -> str:
    """How to name it elsewhere: a hub repository by its id, all else by its place here."""
    found = find(uri)
    return uri if not isinstance(found, Path) and _HUB_ID.fullmatch(uri) else str(resolve(uri))


def _demo(uri: str) -> Path:
    path = WEIGHTS / uri.removeprefix(DEMO)
    if not path.exists():
        known = sorted(p.relative_to(WEIGHTS).as_posix() for p in [*WEIGHTS.glob("*"), *WEIGHTS.glob("rewards/*")])
        known = [DEMO + name for name in known if name != "rewards"]
        raise MarbleError(f"There is no {uri!r}; the demo has {', '.join(known) or 'no weights yet'}.")
    return path


def _hub(uri: str, part: Part, revision: str | None) -> Remote:
    from marble_core.storage.hub import HubFile, HubRepository

    if match := _HUB_URI.fullmatch(uri):
        repository, revision = match["repo"], match["revision"] or revision
        if match["file"]:
            return HubFile(repository, match["file"], revision)
        return HubRepository(repository, part, revision)
    if uri.startswith("hf://"):
        raise MarbleError(f"{uri!r} is not of the form hf://organisation/name@revision/path/of/a/file.")
    if _HUB_ID.fullmatch(uri):
        return HubRepository(uri, part, revision)
    raise MarbleError(
        f"The path {uri!r} does not exist. Give a directory, a file, a hub id such as 'organisation/name', "
        "or an address that begins with hf://, s3:// or https://."
    )
