"""Trains the demo's text-to-image model from nothing: ``marble demo pretrain`` (recipe: docs/demo_model.md, section 4).

Phases: the VAE; the latents of all images; transformer and text encoders; the decoder again, for those latents. Each keeps
its state in the work directory, and a second start goes on from there. Only prompts of the training side are ever seen.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from marble_core.demo import architecture
from marble_core.demo.draw import draw
from marble_core.demo.phase import Show, read, write
from marble_core.demo.pretrain_text_to_image import TextToImage, train_text_to_image
from marble_core.demo.pretrain_vae import encode, train_decoder, train_vae
from marble_core.demo.prompts import Entry, entries
from marble_core.demo.recipe import Recipe
from marble_core.runtime.seeding import derive
from marble_core.types import MarbleError

SOURCES = {"general": 0.22, "ocr": 0.42, "geneval": 0.36}  # shares: spelling takes longest to learn


def pretrain(out: Path, work: Path, recipe: Recipe, show: Show) -> None:
    """Train, and save a StableDiffusion3Pipeline to the new directory ``out``.

    Raises MarbleError where ``out`` exists, or where ``work`` was begun with another recipe.
    """
    if out.exists():
        raise MarbleError(f"The directory {str(out)!r} exists already: give another --out, or remove it.")
    _claim(work, recipe)
    seed, chosen = recipe.seed, choose(recipe)
    pictures = _draw(chosen, seed, show)
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "initial weights"))
        vae, model, silent = architecture.vae(), TextToImage(), architecture.silent_t5()
    train_vae(vae, pictures, recipe.vae_steps, seed, work / "vae.safetensors", show)

    latents = _latents(vae, pictures, work / "latents.safetensors", show)
    shift, deviation = latents.float().mean().item(), latents.float().std().item()
    vae.register_to_config(shift_factor=shift, scaling_factor=1 / deviation)
    scaled, file = (latents.float() - shift) / deviation, work / "text_to_image.safetensors"
    train_text_to_image(model, scaled, [entry.prompt.text for entry in chosen], recipe.text_to_image_steps, seed, file, show)

    train_decoder(vae, pictures, latents, recipe.decoder_steps, seed, work / "decoder.safetensors", show)
    pipe = architecture.assemble(vae, model.transformer, model.text_encoder, model.text_encoder_2, silent)
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    disable_progress_bar()  # of writing 15 MB
    pipe.save_pretrained(draft)
    os.replace(draft, out)


def choose(recipe: Recipe) -> list[Entry]:
    """What there is to learn from: prompts of the training side with their scenes."""
    counts = {source: round(share * recipe.pictures) for source, share in SOURCES.items()}
    return [entry for source, count in counts.items() for entry in entries(source, count, recipe.seed, held_out=False)]


def _draw(chosen: list[Entry], seed: int, show: Show) -> Tensor:
    """(N, C, H, W) uint8. Drawn at each start: it takes a minute, and is the same each time."""
    rng, drawn = Random(derive(seed, "pictures")), []
    for entry in chosen:
        drawn.append(np.asarray(draw(rng.choice(entry.scenes), rng)))
        show("pictures", len(drawn), len(chosen), None)
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()


def _claim(work: Path, recipe: Recipe) -> None:
    """From the first start on, the work directory is for this seed and these images."""
    work.mkdir(parents=True, exist_ok=True)
    file, wanted = work / "recipe.json", json.dumps({"seed": recipe.seed, "pictures": recipe.pictures})
    if not file.exists():
        draft = file.with_suffix(".draft")
        draft.write_text(wanted, encoding="utf-8")
        os.replace(draft, file)
    if file.read_text(encoding="utf-8") != wanted:
        raise MarbleError(
            f"{str(work)!r} was begun with {file.read_text(encoding='utf-8')}: give these values again, or another --work."
        )


def _latents(vae: Any, pictures: Tensor, file: Path, show: Show) -> Tensor:
    if not file.exists():
        write(file, {"latents": encode(vae, pictures, show)})
    return read(file)[0]["latents"]
