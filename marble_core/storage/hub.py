"""The model hub, through huggingface_hub's own cache and settings (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE).

What is missing is listed and brought; what the cached listing of a repository says to be complete needs no network.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import huggingface_hub as hub
from huggingface_hub import constants, errors
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from marble_core.storage.artifacts import Part, refuse_code
from marble_core.types import MarbleError

_log = logging.getLogger(__name__)
_PROCESSOR = re.compile(
    r"(config|preprocessor_config|processor_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|vocab\.txt|merges\.txt|spiece\.model|tokenizer\.model"
)
_SAFETENSORS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_BIN = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?")
_PIPELINE = re.compile(r"model_index\.json|(scheduler|text_encoder(_\d)?|tokenizer(_\d)?|transformer|vae)/[^/]+")
_LORA = re.compile(r"[^/]+\.safetensors|adapter_config\.json")
_VARIANT = re.compile(r"\.(fp16|bf16|non_ema)[.-]")  # the same weights once more
_UNREACHABLE = (httpx2.TransportError, errors.OfflineModeIsEnabled)


class HubRepository:
    """The files of a repository that a part is read from."""

    def __init__(self, name: str, part: Part, revision: str | None) -> None:
        self.name, self.part, self.revision = name, part, revision

    def cached(self) -> Path | None:
        with _sentences(self.name, self.revision):
            try:
                listing = hub.get_cached_repo_tree(self.name, revision=self.revision)
                return self._snapshot([file.path for file in listing], offline=True)
            except (errors.CachedRepoTreeNotFoundError, errors.IncompleteSnapshotError, errors.LocalEntryNotFoundError):
                return None

    def size(self) -> int:
        with _sentences(self.name, self.revision):
            sizes = _listing(self.name, self.revision)
        return sum(sizes[name] for name in _wanted(self.part, list(sizes)))

    def refuse(self) -> str | None:
        """Of one that is not in the cache: raises MarbleError where it is not for this account, or there is none such; brings nothing. Returns what to tell the
        user where the hub cannot be asked."""
        with _sentences(self.name, self.revision):
            try:
                wanted = _wanted(self.part, list(_listing(self.name, self.revision)))
                for file in wanted[:1]:  # the listing of a gated repository is public
                    hub.get_hf_file_metadata(hub.hf_hub_url(self.name, file, revision=self.revision))
            except _UNREACHABLE:
                return f"Whether {self.name} can be had is not known: {constants.ENDPOINT} was not to be asked from here."
        if not wanted:
            raise MarbleError(f"The repository {self.name!r} of the hub holds no {self.part}: check its name.")
        if self.part == Part.PIPELINE:
            refuse_code(self.name, wanted)
        return None

    def fetch(self) -> Path:
        with _sentences(self.name, self.revision), _bars():
            try:
                names = list(_listing(self.name, self.revision))
            except _UNREACHABLE:  # what another program has brought has no listing: its reader will tell what is missing
                return Path(hub.snapshot_download(self.name, revision=self.revision, local_files_only=True))
            _log.warning("Fetching %s into %s", self.name, constants.HF_HUB_CACHE)
            return self._snapshot(names, offline=False)

    def _snapshot(self, names: Sequence[str], offline: bool) -> Path:
        wanted = _wanted(self.part, names)
        if not wanted:
            raise MarbleError(f"The repository {self.name!r} of the hub holds no {self.part}: check its name.")
        return Path(hub.snapshot_download(self.name, revision=self.revision, allow_patterns=wanted, local_files_only=offline))


class HubFile:
    """One file of a repository."""

    def __init__(self, name: str, file: str, revision: str | None) -> None:
        self.name, self.file, self.revision = name, file, revision

    def cached(self) -> Path | None:
        with _sentences(self.name, self.revision):
            found = hub.try_to_load_from_cache(self.name, self.file, revision=self.revision)
        return Path(found) if isinstance(found, str) else None

    def size(self) -> int:
        with _sentences(self.name, self.revision):
            sizes = _listing(self.name, self.revision)
        if self.file not in sizes:
            raise MarbleError(f"The repository {self.name!r} of the hub has no file {self.file!r}, but {', '.join(sizes)}.")
        return sizes[self.file]

    def fetch(self) -> Path:
        self.size()  # where there is no network, the download itself would try for half a minute
        with _sentences(self.name, self.revision), _bars():
            _log.warning("Fetching %s of %s into %s", self.file, self.name, constants.HF_HUB_CACHE)
            return Path(hub.hf_hub_download(self.name, self.file, revision=self.revision))


def _listing(name: str, revision: str | None) -> dict[str, int]:
    """The hub's: bytes by name."""
    files = hub.HfApi().model_info(name, revision=revision, files_metadata=True).siblings or ()
    return {file.rfilename: file.size or 0 for file in files}


def _wanted(part: Part, names: Sequence[str]) -> list[str]:
    """The names that a part is read from; weights in one format only, safetensors where there are such."""
    if part == Part.PIPELINE:
        return [name for name in names if _PIPELINE.fullmatch(name) and not _VARIANT.search(name)]
    if part == Part.LORA:
        return [name for name in names if _LORA.fullmatch(name)]
    weights = [name for name in names if _SAFETENSORS.fullmatch(name)] or [name for name in names if _BIN.fullmatch(name)]
    return [name for name in names if _PROCESSOR.fullmatch(name)] + (weights if part == Part.MODEL else [])


@contextmanager
def _bars() -> Iterator[None]:
    """The hub's progress bars on a terminal only: in a stage's log they are noise."""
    silence = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if silence:
        disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            enable_progress_bars()


@contextmanager
def _sentences(name: str, revision: str | None) -> Iterator[None]:
    """Turns the hub's errors into one sentence each. None of them holds the token."""
    page = f"{constants.ENDPOINT}/{name}"
    try:
        yield
    except errors.GatedRepoError:
        raise MarbleError(
            f"The model {name!r} is gated: accept its licence on {page}, and set HF_TOKEN to a token of that account."
        ) from None
    except errors.RevisionNotFoundError:
        raise MarbleError(f"The repository {name!r} of the hub has no revision {revision!r}: see {page}.") from None
    except errors.RepositoryNotFoundError:
        raise MarbleError(
            f"There is no directory {name!r} here, and no such repository on the hub for you: correct the name, "
            "or set HF_TOKEN if it is private."
        ) from None
    except errors.HFValidationError:
        raise MarbleError(f"{name!r} is no name of a repository on the hub: it is of the form 'organisation/name'.") from None
    except (*_UNREACHABLE, errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        raise MarbleError(
            f"The model cache {constants.HF_HUB_CACHE} has not all of {name!r}, and {why}. "
            "Run 'marble fetch' where there is a network, with HF_HOME on the disk that the run will use."
        ) from None
    except OSError as error:  # the hub's other answers, a full disk, a cache that may not be written
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        raise MarbleError(f"{name!r} cannot be brought from the hub into {constants.HF_HUB_CACHE}: {reason}.") from None
