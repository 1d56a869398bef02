"""The images that the demo's reward models learn from: drawn, countered, sampled, spoiled. (N, H, W, C) uint8, RGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from torch import Tensor

from marble_core.demo.counterexamples import alter, misdescribe, spoil
from marble_core.demo.draw import draw
from marble_core.demo.prompts import Entry, entries
from marble_core.demo.scenes import SIZE
from marble_core.storage.uri import resolve
from marble_core.types import SOURCES

REDRAWINGS = 2
SAMPLING_STEPS, SAMPLING_GUIDANCE, SAMPLING_BATCH = 10, (1.0, 3.0), 100


@dataclass(frozen=True)
class Pictures:
    """N prompts and their images. All but ``redrawn`` have passed the VAE, so that its blur is not what is preferred."""

    texts: list[str]
    false_texts: list[str]
    drawn: np.ndarray
    redrawn: tuple[np.ndarray, ...]  # further drawings
    counter: np.ndarray  # drawings of scenes that the prompt does not describe
    sampled: np.ndarray
    spoiled: np.ndarray  # one of drawn, sampled, made worse
    spoiled_is_sample: np.ndarray  # (N,) bool

    @property
    def unspoiled(self) -> np.ndarray:
        return np.where(self.spoiled_is_sample[:, None, None, None], self.sampled, self.drawn)


class DemoModel:
    """The demo's SD3, to sample from and to send drawings through its VAE."""

    def __init__(self) -> None:
        self.pipe = StableDiffusion3Pipeline.from_pretrained(resolve("demo://sd3"), torch_dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.shift, self.scale = self.pipe.vae.config.shift_factor, self.pipe.vae.config.scaling_factor

    @torch.no_grad()
    def sample(self, texts: list[str], guidance: float, seed: int) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.pipe(
                texts,
                num_inference_steps=SAMPLING_STEPS,
                guidance_scale=guidance,
                height=SIZE,
                width=SIZE,
                max_sequence_length=1,
                output_type="latent",
                generator=torch.Generator().manual_seed(seed),
            ).images
        return self._decode(latents.float() / self.scale + self.shift)

    @torch.no_grad()
    def reconstruct(self, pictures: list[Image.Image]) -> np.ndarray:
        pixels = as_pixels(as_array(pictures))
        return np.concatenate([self._decode(self.pipe.vae.encode(part).latent_dist.mean) for part in pixels.split(100)])

    def _decode(self, latents: Tensor) -> np.ndarray:
        pixels = self.pipe.vae.decode(latents).sample.clamp(-1, 1)
        return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def as_pixels(images_NHWC: np.ndarray) -> Tensor:
    """(N, C, H, W) in [-1, 1], which is what the saved image processor does with mean and std of a half."""
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1


def choose(count: int, seed: int, held_out: bool) -> list[Entry]:
    """Entries of all sources, mixed."""
    chosen = [entry for source in SOURCES for entry in entries(source, count // len(SOURCES), seed, held_out)]
    Random(seed).shuffle(chosen)
    return chosen


def make_pictures(model: DemoModel, chosen: list[Entry], seed: int, say: Callable[[str], None]) -> Pictures:
    """Draw, redraw, counter, sample and spoil."""
    rng = Random(seed)
    texts = [entry.prompt.text for entry in chosen]
    scenes = [[rng.choice(entry.scenes) for entry in chosen] for _ in range(1 + REDRAWINGS)]
    drawings = [[draw(scene, rng) for scene in row] for row in scenes]
    drawn = model.reconstruct(drawings[0])
    counter = model.reconstruct([draw(alter(scene, rng), rng) for scene in scenes[0]])
    say(f"{len(chosen)} prompts drawn")
    parts = []
    for number, i in enumerate(range(0, len(chosen), SAMPLING_BATCH)):
        guidance = SAMPLING_GUIDANCE[number % len(SAMPLING_GUIDANCE)]
        parts.append(model.sample(texts[i : i + SAMPLING_BATCH], guidance, seed + number))
        say(f"{min(i + SAMPLING_BATCH, len(chosen))} of {len(chosen)} sampled")
    sampled = np.concatenate(parts)
    is_sample = np.array([rng.random() < 0.5 for _ in chosen])
    whole = np.where(is_sample[:, None, None, None], sampled, drawn)
    return Pictures(
        texts=texts,
        false_texts=[misdescribe(text, rng) for text in texts],
        drawn=drawn,
        redrawn=tuple(as_array(row) for row in drawings[1:]),
        counter=counter,
        sampled=sampled,
        spoiled=as_array([spoil(Image.fromarray(picture), rng) for picture in whole]),
        spoiled_is_sample=is_sample,
    )


def as_array(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures])
