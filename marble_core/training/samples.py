"""Images of training as it goes, of the same prompts from the same noise: to MLflow, and to files beside the history."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from marble_core.algorithm.learner import Learner
from marble_core.config.stage_files import SAMPLES
from marble_core.runtime.housekeeping import housekeeping
from marble_core.types import Prompt

if TYPE_CHECKING:
    from marble_core.tracking.tracker import Tracker


class Samples:
    """Step 0, each n-th step (``train.samples_every``) and the last. What cannot be sampled ends no training.

    The files lie in ``directory`` until the training is done; of a run that goes on elsewhere, those from before are in MLflow alone.
    """

    def __init__(self, tracker: Tracker, prompts: Sequence[Prompt], directory: Path) -> None:
        self.tracker, self.prompts, self.directory = tracker, prompts, directory / SAMPLES

    def show(self, learner: Learner) -> None:
        """Where the learner's step is one of those."""
        every, step = learner.config.train.samples_every, learner.step
        if every and (step % every == 0 or step == learner.config.train.steps):
            housekeeping("the samples", lambda: self._sample(learner))

    def _sample(self, learner: Learner) -> None:
        from PIL import Image

        from marble_core.models.previews import fixed_texts, grid

        grid_HWC = grid(learner.policy, self.prompts, learner.config)
        self.tracker.log_image(grid_HWC, "samples", learner.step)
        self.directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid_HWC).save(self.directory / f"step-{learner.step:06d}.png")
        texts = json.dumps(fixed_texts(self.prompts), ensure_ascii=False)
        (self.directory / "prompts.json").write_text(texts, encoding="utf-8")

    def save(self, out: Path) -> None:
        """Copy the files to ``out``, where the explorer looks for them."""
        if self.directory.is_dir():
            housekeeping("the samples' files", lambda: shutil.copytree(self.directory, out / SAMPLES, dirs_exist_ok=True))
