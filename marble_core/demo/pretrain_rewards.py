"""Trains the demo's three small reward models: ``marble demo pretrain-rewards`` (some 15 minutes on two cores).

- clip: a CLIPModel on images of the world and their prompts, with hard negatives: each image has a counterexample (a scene
  that the prompt does not describe, or a spoiled image) and each prompt a false description.
- pickscore: the same trained further on pairs under one prompt, a drawn image preferred to a sampled one (PickScore's recipe,
  arXiv 2305.01569), and any image to its spoiled or emptied self.
- aesthetic: five linear layers on clip's image features (the aesthetic predictor's recipe): drawn, sampled, spoiled.

Training is fp32: bf16 autocast is half as fast on CPUs without AMX.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase

from marble_core.demo.pictures import DemoModel, Pictures, as_pixels, choose, make_pictures
from marble_core.demo.scenes import SIZE
from marble_core.rewards.weights.mlp_head import Head
from marble_core.storage.uri import resolve

SEED = 7
TRAIN_SIZE, HELD_OUT_SIZE = 4200, 450  # prompts over all sources, each drawn, sampled and spoiled
SPOILED_SHARE = 0.3  # of clip's counterexamples
QUALITY = {"drawn": 7.5, "sampled": 5.0, "spoiled": 3.0}  # what the head should say, on the predictor's scale of 1-10
TEXT_LENGTH = 16
PROJECTION = 96


@dataclass(frozen=True)
class Recipe:
    steps: int
    batch: int
    lr: float
    weight_decay: float


CLIP = Recipe(steps=500, batch=128, lr=1e-3, weight_decay=0.05)
PICK = Recipe(steps=200, batch=64, lr=3e-4, weight_decay=0.1)
HEAD = Recipe(steps=400, batch=512, lr=1e-3, weight_decay=1e-4)


# -------------------------------------------------------------------------------------------------------------- training
class Texts:
    """Prompts as token ids, tokenized once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
        found = tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
        self.ids, self.mask = found.input_ids, found.attention_mask

    def features(self, model: CLIPModel, index: Tensor) -> Tensor:
        found = model.get_text_features(input_ids=self.ids[index], attention_mask=self.mask[index])
        return F.normalize(found.pooler_output, dim=-1)


def image_features(model: CLIPModel, images_NHWC: np.ndarray, augment: bool = True) -> Tensor:
    """Unit features (N, D). ``augment`` moves each batch by up to two pixels and adds a little noise."""
    pixels = as_pixels(images_NHWC)
    if augment:
        dy, dx = torch.randint(-2, 3, (2,)).tolist()
        pixels = pixels.roll((dy, dx), (2, 3)) + 0.04 * torch.rand(len(pixels), 1, 1, 1) * torch.randn_like(pixels)
    found = [model.get_image_features(pixel_values=part).pooler_output for part in pixels.split(256)]
    return F.normalize(torch.cat(found), dim=-1)


def small_clip(vocabulary: int) -> CLIPModel:
    return CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": vocabulary,
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "max_position_embeddings": TEXT_LENGTH,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 3,
            },
            vision_config={
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": SIZE,
                "patch_size": 8,
            },
            projection_dim=PROJECTION,
        )
    )


def clip_loss(model: CLIPModel, pictures: Pictures, truths: Texts, lies: Texts, index: Tensor) -> Tensor:
    """InfoNCE both ways (arXiv 2103.00020) with the hard negatives: 2N texts for each image, 2N images for each text.

    Half of the true images have passed the VAE.
    """
    rows, count, target = index.numpy(), len(index), torch.arange(len(index))
    rng = np.random.default_rng(int(torch.randint(2**31, ())))
    drawings = np.stack([pictures.drawn[rows], pictures.drawn[rows], *(drawing[rows] for drawing in pictures.redrawn)])
    true = drawings[rng.integers(0, len(drawings), count), np.arange(count)]
    is_spoiled = rng.random(count) < SPOILED_SHARE
    false = np.where(is_spoiled[:, None, None, None], pictures.spoiled[rows], pictures.counter[rows])
    images = image_features(model, np.concatenate([true, false]))
    texts = torch.cat([truths.features(model, index), lies.features(model, index)])
    ids = torch.cat([truths.ids[index], lies.ids[index]])
    same_text = (ids[:count, None] == ids[None]).all(-1)  # equal prompts are not negatives
    same_text[target, target] = False
    scale = model.logit_scale.exp()
    to_texts = (scale * images[:count] @ texts.T).masked_fill(same_text, -1e4)
    same_picture = torch.cat([same_text[:, :count], torch.zeros(count, count, dtype=torch.bool)], dim=1)
    to_images = (scale * texts[:count] @ images.T).masked_fill(same_picture, -1e4)
    return (F.cross_entropy(to_texts, target) + F.cross_entropy(to_images, target)) / 2


def pick_loss(model: CLIPModel, pictures: Pictures, texts: Texts, index: Tensor) -> Tensor:
    """-log sigmoid of score differences: drawn > sampled, drawn > counterexample, any > its spoiled self, own > another's."""
    rows = index.numpy()
    prompts = texts.features(model, index)
    kinds = (pictures.drawn[rows], pictures.sampled[rows], pictures.counter[rows], pictures.spoiled[rows])
    images = image_features(model, np.concatenate(kinds)).view(len(kinds), len(rows), -1)
    drawn, sampled, counter, spoiled = model.logit_scale.exp() * (images * prompts).sum(-1)
    another = model.logit_scale.exp() * (images[1].roll(1, 0) * prompts).sum(-1)
    unspoiled = torch.where(torch.from_numpy(pictures.spoiled_is_sample[rows]), sampled, drawn)
    pairs = ((1.0, drawn, sampled), (0.5, drawn, counter), (0.5, unspoiled, spoiled), (0.5, sampled, another))
    return torch.stack([-weight * F.logsigmoid(better - worse).mean() for weight, better, worse in pairs]).sum()


def fit(module: nn.Module, recipe: Recipe, count: int, loss_of: Callable[[Tensor], Tensor], name: str) -> None:
    """AdamW with one cycle of the learning rate, over random batches of ``count``; tells its progress."""
    optimizer = torch.optim.AdamW(module.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, recipe.steps, pct_start=0.1)
    start = time.monotonic()
    for step in range(1, recipe.steps + 1):
        loss = loss_of(torch.randint(0, count, (recipe.batch,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 1 or step == recipe.steps:
            left = (time.monotonic() - start) / step * (recipe.steps - step)
            print(f"{name} {step}/{recipe.steps}: loss {loss.item():.3f}, {left:.0f} s left", flush=True)


@torch.no_grad()
def cosines(model: CLIPModel, images_NHWC: np.ndarray, texts: Texts) -> Tensor:
    return (image_features(model, images_NHWC, augment=False) * texts.features(model, torch.arange(len(images_NHWC)))).sum(-1)


def share(condition: Tensor) -> float:
    return condition.float().mean().item()


@torch.no_grad()
def clip_accuracy(model: CLIPModel, held_out: Pictures, truths: Texts, lies: Texts) -> dict[str, float]:
    own = cosines(model, held_out.drawn, truths)
    among = torch.arange(192)
    retrieved = (image_features(model, held_out.drawn[:192], augment=False) @ truths.features(model, among).T).argmax(1)
    return {
        "retrieval among 192": share(retrieved == among),
        "true over false text": share(own > cosines(model, held_out.drawn, lies)),
        "true over false picture": share(own > cosines(model, held_out.counter, truths)),
        "whole over spoiled": share(own > cosines(model, held_out.spoiled, truths)),
    }


def pick_accuracy(model: CLIPModel, held_out: Pictures, texts: Texts) -> dict[str, float]:
    drawn, spoiled = cosines(model, held_out.drawn, texts), cosines(model, held_out.spoiled, texts)
    return {
        "drawn over sampled": share(drawn > cosines(model, held_out.sampled, texts)),
        "drawn over counterexample": share(drawn > cosines(model, held_out.counter, texts)),
        "whole over spoiled": share(cosines(model, held_out.unspoiled, texts) > spoiled),
    }


@torch.no_grad()
def head_accuracy(model: CLIPModel, head: Head, held_out: Pictures) -> dict[str, float]:
    def value(images_NHWC: np.ndarray) -> Tensor:
        return head(image_features(model, images_NHWC, augment=False))

    values = {kind: value(getattr(held_out, kind)) for kind in QUALITY}
    return {
        "drawn over sampled": share(values["drawn"] > values["sampled"]),
        "whole over spoiled": share(value(held_out.unspoiled) > values["spoiled"]),
        **{f"mean of {kind}": found.mean().item() for kind, found in values.items()},
    }


def train_head(model: CLIPModel, pictures: Pictures) -> Head:
    """Least squares of QUALITY on clip's image features, as the aesthetic predictor was made."""
    with torch.no_grad():
        features = torch.cat([image_features(model, getattr(pictures, kind), augment=False) for kind in QUALITY])
    wanted = torch.tensor(list(QUALITY.values())).repeat_interleave(len(pictures.texts))
    head = Head(features.shape[1])
    nn.init.constant_(head.get_parameter("layers.7.bias"), wanted.mean().item())

    def loss_of(index: Tensor) -> Tensor:
        return F.mse_loss(head(features[index]), wanted[index])

    fit(head, HEAD, len(features), loss_of, "aesthetic")
    return head.eval()


# ------------------------------------------------------------------------------------------------------------------ main
def save_clip(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write what a CLIP repository holds: model (fp16), tokenizer, image processor."""
    half = CLIPModel(model.config).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(directory)


def report(name: str, accuracies: dict[str, float]) -> None:
    print(f"{name} held out: " + ", ".join(f"{what} {value:.3f}" for what, value in accuracies.items()), flush=True)


def pretrain_rewards(target: Path) -> None:
    """Train the three and write them to ``target``, each to the directory of its name."""
    torch.manual_seed(SEED)
    start = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - start:4.0f} s] {what}", flush=True)

    sd3 = DemoModel()
    held_out = make_pictures(sd3, choose(HELD_OUT_SIZE, SEED, True), SEED, say)
    pictures = make_pictures(sd3, choose(TRAIN_SIZE, SEED, False), SEED + 1000, say)
    count = len(pictures.texts)

    tokenizer = AutoTokenizer.from_pretrained(Path(resolve("demo://sd3"), "tokenizer"))
    truths, lies = Texts(tokenizer, pictures.texts), Texts(tokenizer, pictures.false_texts)
    held_truths, held_lies = Texts(tokenizer, held_out.texts), Texts(tokenizer, held_out.false_texts)

    say("clip")
    model = small_clip(len(tokenizer))
    fit(model, CLIP, count, lambda index: clip_loss(model, pictures, truths, lies, index), "clip")
    report("clip", clip_accuracy(model.eval(), held_out, held_truths, held_lies))
    save_clip(model, tokenizer, target / "clip")

    say("aesthetic")
    head = train_head(model, pictures)
    report("aesthetic", head_accuracy(model, head, held_out))
    (target / "aesthetic").mkdir(parents=True, exist_ok=True)
    save_file({name: value.half() for name, value in head.state_dict().items()}, target / "aesthetic" / "model.safetensors")

    say("pickscore")
    model.train()
    fit(model, PICK, count, lambda index: pick_loss(model, pictures, truths, index), "pickscore")
    report("pickscore", pick_accuracy(model.eval(), held_out, held_truths))
    save_clip(model, tokenizer, target / "pickscore")
    say("done")
