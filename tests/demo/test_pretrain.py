"""Pretraining the demo's model, at tiny size: what it leaves, that being killed changes nothing, and how models are scored."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from typer.testing import CliRunner

from marble_core.cli import app
from marble_core.demo import score
from marble_core.demo.draw import draw
from marble_core.demo.pretrain import choose, pretrain
from marble_core.demo.prompts import entries, is_held_out
from marble_core.demo.recipe import Recipe
from marble_core.storage.uri import WEIGHTS
from marble_core.types import MarbleError

SHIPPED = WEIGHTS / "sd3"
TINY = Recipe(seed=5, pictures=12, vae_steps=2, text_to_image_steps=3, decoder_steps=2)
OPTIONS = ["--seed=5", "--pictures=12", "--vae-steps=2", "--text-to-image-steps=3", "--decoder-steps=2"]


def silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of an undisturbed pretraining."""
    directory = tmp_path_factory.mktemp("pretrain")
    pretrain(directory / "sd3", directory / "work", TINY, silent)
    return directory / "sd3"


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_pretraining_killed_between_checkpoints_and_started_again_ends_with_the_same_bytes(trained, tmp_path):
    command = [sys.executable, "-m", "marble_core.cli", "demo", "pretrain", f"--out={tmp_path / 'sd3'}"]
    command += [f"--work={tmp_path / 'work'}", *OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        seen = next(line for line in process.stdout if line.startswith("text-to-image 1/3"))
        process.kill()
    assert seen and process.returncode < 0 and not (tmp_path / "sd3").exists()
    again = CliRunner().invoke(app, ["demo", "pretrain", f"--out={tmp_path / 'sd3'}", f"--work={tmp_path / 'work'}", *OPTIONS])
    assert again.exit_code == 0, again.output
    assert (
        "vae" not in again.output
        and "latents" not in again.output
        and "text-to-image 1/3" not in again.output
        and "decoder 2/2" in again.output
    )
    assert files(tmp_path / "sd3") == files(trained)


def test_one_stopped_after_every_step_ends_with_the_same_bytes_too(trained, tmp_path):
    class Stopped(Exception):
        pass

    def stop(phase: str, *_: object) -> None:
        if phase not in ("pictures", "latents"):
            raise Stopped

    for _ in range(TINY.vae_steps + TINY.text_to_image_steps + TINY.decoder_steps):
        with pytest.raises(Stopped):
            pretrain(tmp_path / "sd3", tmp_path / "work", TINY, stop)
    pretrain(tmp_path / "sd3", tmp_path / "work", TINY, stop)
    assert files(tmp_path / "sd3") == files(trained)


def test_plain_diffusers_loads_the_model_and_samples_from_it(trained):
    index = json.loads((trained / "model_index.json").read_text())
    assert {found[0] for name, found in index.items() if name[0] != "_"} == {"diffusers", "transformers", None}
    pipe = StableDiffusion3Pipeline.from_pretrained(trained, torch_dtype=torch.float32)
    images = pipe(
        ["a red circle", 'a sign that says "CAT"'],
        num_inference_steps=2,
        guidance_scale=3.0,
        height=64,
        width=64,
        max_sequence_length=1,
        output_type="np",
    ).images
    assert images.shape == (2, 64, 64, 3) and np.isfinite(images).all() and images.std() > 0


def test_the_third_text_encoder_answers_exact_zeros(trained):
    pipe = StableDiffusion3Pipeline.from_pretrained(trained)
    ids = torch.arange(32).view(2, 16)
    assert not pipe.text_encoder_3(ids).last_hidden_state.any()
    assert pipe.text_encoder(ids).last_hidden_state.any()


def built(file: Path) -> dict[str, object]:
    """Shapes and types of weights; a configuration without what is learned, versions, the tokenizers' class (renamed by
    transformers 5) and what the last call left in a tokenizer."""
    if file.suffix == ".safetensors":
        return {name: (value.shape, value.dtype) for name, value in load_file(file).items()}
    found = json.loads(file.read_text())
    unlike = {"scaling_factor", "shift_factor", "padding", "tokenizer", "tokenizer_2", "tokenizer_3"}
    return {name: None if name in unlike else value for name, value in found.items() if name[0] != "_"}


def test_what_is_saved_is_built_like_the_shipped_model(trained):
    assert files(trained).keys() == files(SHIPPED).keys()
    for path in sorted(path for path in SHIPPED.rglob("*") if path.is_file()):
        mine = built(trained / path.relative_to(SHIPPED))
        assert mine == built(path), path


def test_only_prompts_of_the_training_side_are_learned_from():
    texts = [entry.prompt.text for entry in choose(replace(TINY, pictures=3000))]
    assert len(texts) == 3000 and not any(is_held_out(text) for text in texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seed": 6}, "was begun with"), ({"pictures": 13}, "was begun with"), ({"vae_steps": 3}, "was begun as 2 steps")],
)
def test_a_work_directory_does_not_go_on_with_another_recipe(trained, tmp_path, change, message):
    with pytest.raises(MarbleError, match=message):
        pretrain(tmp_path / "sd3", trained.parent / "work", replace(TINY, **change), silent)


def test_a_directory_that_exists_is_not_written_over(trained):
    with pytest.raises(MarbleError, match="exists already"):
        pretrain(trained, trained.parent / "work", TINY, silent)


def test_the_drawn_world_itself_scores_full_marks(monkeypatch):
    scenes = {e.prompt.text: e.scenes for source in ("ocr", "geneval") for e in entries(source, 24, 0, held_out=True)}

    def drawn(model, prompts, *_):
        return np.stack([np.asarray(draw(scenes[prompt.text][0], Random(i))) for i, prompt in enumerate(prompts)])

    monkeypatch.setattr(score, "sample", drawn)
    columns = score.score(score.load("demo://sd3"), 24, 1.0, 1, 0).columns()
    assert list(columns) == ["ocr", "exact", "geneval", "strict", "colors", "counting", "color_attr", "position"]
    assert {name: found.mean() for name, found in columns.items()} == dict.fromkeys(columns, 1.0)
    assert sum(len(columns[tag]) for tag in ("colors", "counting", "color_attr", "position")) == 24


def test_score_has_a_row_for_each_model_and_guidance_scale(trained):
    said = CliRunner().invoke(app, ["demo", "score", "demo://sd3", str(trained), "-n", "6", "--steps", "8", "--json"])
    assert said.exit_code == 0, said.output
    found = json.loads(said.output)
    assert [(row["model"], row["guidance"]) for row in found] == [(m, g) for m in ("demo://sd3", str(trained)) for g in (1, 3)]
    ocr = [row["scores"]["ocr"]["mean"] for row in found]
    assert ocr[1] > 0.4 > ocr[3], "the shipped model writes, one of three steps does not"
