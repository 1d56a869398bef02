"""A base model and the adapters of a registered model's versions, and images drawn with any of them."""

from __future__ import annotations

import secrets
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marble_core.config.schema import RunConfig
from marble_core.models.guidance import Guided, why_unguided
from marble_core.models.policy import Policy
from marble_core.models.sampling import sample
from marble_core.runtime.scratch import scratch_directory
from marble_core.tracking.registry import BASE_TAG, REVISION_TAG, champion_tags, fetch_adapter
from marble_core.types import MarbleError

SEEDS = 2**31


@dataclass(frozen=True)
class Drawn:
    """``images_NHWC`` (uint8), the seed of each, and the version whose LoRA drew them; None: the base."""

    images_NHWC: np.ndarray
    seeds: tuple[int, ...]
    version: str | None


class Served:
    """What one process serves. ``follow`` looks at the alias, ``draw`` makes images; both may be called from any thread."""

    def __init__(self, config: RunConfig) -> None:
        """Loads the base model of ``config``. Raises MarbleError where it cannot be had."""
        self.config = config
        self.policy = Policy.load(config)
        self.no_guidance = why_unguided(self.policy.model)
        self.version: str | None = None  # of the champion
        self.previous: str | None = None  # the one before it, which is kept for a roll-back
        self._loaded: set[str] = set()
        self._lock = threading.Lock()  # one model, one device: an image at a time

    def follow(self) -> bool:
        """Serve the version that the alias ``champion`` names now; True where that is another one than before.

        The new LoRA is fetched and loaded beside the old one before it takes over, so that no request waits for a download. Raises
        MarbleError where MLflow cannot be asked, or the version is not of this base model; what was served is served on.
        """
        name = self.config.registry.model
        found = champion_tags(name)
        version = found[0] if found else None
        if version == self.version:
            return False
        if found and version not in self._loaded:
            self._require_this_base(*found)
            with scratch_directory() as directory:
                self._load(str(version), fetch_adapter(f"models:/{name}/{version}", directory))
        with self._lock:
            self.previous, self.version = self.version, version
            self._forget()
        return True

    def draw(
        self,
        prompt: str,
        count: int = 1,
        seed: int | None = None,
        version: str | None = None,
        strength: float = 1.0,
        guidance: float = 1.0,
    ) -> Drawn:
        """``count`` images of ``prompt``, image i from the noise of ``seed`` + i (drawn at random without one).

        ``version`` None is the base. Raises MarbleError for a version that is not loaded, and for guidance that this family has not.
        """
        if guidance != 1 and self.no_guidance:
            raise MarbleError(f"guidance {guidance:g} cannot be had: {self.no_guidance}; leave it at 1.")
        first = secrets.randbelow(SEEDS) if seed is None else seed
        seeds = tuple((first + i) % SEEDS for i in range(count))
        e = self.config.evaluation
        with self._lock:
            if version is not None and version not in self._loaded:
                there = ", ".join(sorted(self._loaded, key=int)) or "none"
                raise MarbleError(f"Version {version} is not served (there are: {there}); ask for champion, previous or base.")
            adapter = "off" if version is None else _adapter(version)
            with self.policy.using(adapter, strength) as plain:
                model = plain if guidance == 1 else Guided(plain, guidance)
                images_NHWC = sample(
                    model, [prompt], seeds, e.solver, e.steps, e.batch_size or count, precision=self.config.model.precision
                )[1]
        return Drawn(images_NHWC, seeds, version)

    def _require_this_base(self, version: str, tags: dict[str, str]) -> None:
        m = self.config.model
        if (tags.get(BASE_TAG), tags.get(REVISION_TAG)) != (m.path, m.revision or ""):
            base = " ".join(filter(None, (tags.get(BASE_TAG, "a base model that it does not name"), tags.get(REVISION_TAG))))
            raise MarbleError(
                f"Version {version} of {self.config.registry.model} is for {base}, but {m.path} is served: set model.path and "
                "model.revision to its base."
            )

    def _load(self, version: str, file: Path) -> None:
        with self._lock, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what is wanted
            self.policy.load_adapter(file, name=_adapter(version))
            self._loaded.add(version)

    def _forget(self) -> None:
        """All but the champion and the one before it."""
        for version in self._loaded - {self.version, self.previous}:
            self.policy.adapters.remove(_adapter(version))
            self._loaded.remove(version)


def _adapter(version: str) -> str:
    return f"version-{version}"
