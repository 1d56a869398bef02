"""Known checkpoints: where they lie, their licences and sizes, and what a configuration needs of them. No torch.

Facts: docs/rewards.md, section 1. "unknown" is written where no licence was seen, which is not a permission.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from marble_core import __version__
from marble_core.config.schema import ModelConfig, RewardConfig, RunConfig
from marble_core.storage.artifacts import Part
from marble_core.storage.uri import DEMO, SCHEMES, find

CLIP_L = "openai/clip-vit-large-patch14"
CLIP_H_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PICKSCORE = "yuvalkirstain/PickScore_v1"
HPSV2 = "hf://xswu/HPSv2/HPS_v2.1_compressed.pt"
AESTHETIC_HEAD = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth"
)
IMAGE_REWARD = "hf://THUDM/ImageReward/ImageReward.pt"
BERT = "google-bert/bert-base-uncased"
MASK2FORMER = (
    "https://download.openmmlab.com/mmdetection/v2.0/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco/"
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth"
)
MASK2FORMER_META = "facebook/mask2former-swin-small-coco-instance"
_PP_OCR = "https://www.modelscope.cn/models/RapidAI/RapidOCR/resolve/v3.10.0/onnx/PP-OCRv5/rec/{}_PP-OCRv5_rec_mobile.onnx"
OCR_LANGUAGES = {  # recognisers beside the one in rapidocr's wheel, by their names there; arabic's order of letters is not known here
    name: _PP_OCR.format(name) for name in ("cyrillic", "devanagari", "el", "en", "eslav", "korean", "latin", "ta", "te", "th")
}
UNKNOWN = "unknown"
_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".onnx")


@dataclass(frozen=True)
class Known:
    """What is known of a published checkpoint, in words."""

    licence: str
    size: str
    note: str = ""


KNOWN: dict[str, Known] = {
    CLIP_L: Known("MIT (OpenAI's repository)", "1.7 GB"),
    CLIP_H_PROCESSOR: Known("MIT", "3 MB", "tokenizer and image size only"),
    PICKSCORE: Known("unknown (code MIT, the model page shows none)", "3.9 GB"),
    HPSV2: Known("Apache-2.0", "2.0 GB"),
    AESTHETIC_HEAD: Known("Apache-2.0", "3.7 MB"),
    IMAGE_REWARD: Known("Apache-2.0", "1.8 GB"),
    BERT: Known("Apache-2.0", "1 MB", "tokenizer only"),
    MASK2FORMER: Known("Apache-2.0", "0.3 GB", "the paper's detector"),
    MASK2FORMER_META: Known("CC BY-NC 4.0 (Meta's model zoo)", "0.3 GB", "not the paper's detector, not for commercial use"),
    "CodeGoat24/UnifiedReward-7b-v1.5": Known("MIT", "16 GB", "served by sglang, never loaded here"),
    "black-forest-labs/FLUX.1-dev": Known("FLUX.1 [dev] Non-Commercial (gated)", "34 GB"),
    "black-forest-labs/FLUX.1-schnell": Known("Apache-2.0", "34 GB"),
    "stabilityai/stable-diffusion-3.5-medium": Known("Stability AI Community (gated)", "16 GB"),
    "stabilityai/stable-diffusion-3.5-large": Known("Stability AI Community (gated)", "28 GB"),
}
KNOWN |= dict.fromkeys(OCR_LANGUAGES.values(), Known("Apache-2.0", "about 8 MB", "a recogniser of PP-OCRv5"))
_OURS = Known("this project's", UNKNOWN)


@dataclass(frozen=True)
class Asset:
    """Something to have in place before a run. ``users`` are the rewards that need it, or ``model``."""

    uri: str
    part: Part
    users: tuple[str, ...]
    revision: str | None = None

    @property
    def known(self) -> Known:
        return KNOWN.get(self.uri, _OURS if self.uri.startswith(DEMO) else Known(UNKNOWN, UNKNOWN))


@dataclass(frozen=True)
class Base:
    """What a trained LoRA belongs to. ``revision`` is the commit of what lies in the model cache, or what the configuration names."""

    name: str
    revision: str | None
    licence: str


def base_of(model: ModelConfig) -> Base:
    """The base model of a run, for its model card. Asks nobody."""
    from marble_core.storage.hub import HubRepository

    place = find(model.path, Part.PIPELINE, model.revision)
    if isinstance(place, HubRepository):
        snapshot = place.cached()
        revision = snapshot.name if snapshot else place.revision
        return Base(place.name, revision, KNOWN.get(place.name, Known(UNKNOWN, UNKNOWN)).licence)
    if model.path.startswith(DEMO):
        return Base(model.path, __version__, _OURS.licence)
    return Base(model.path, model.revision, UNKNOWN)


_FEW_STEPS = re.compile(r"schnell|turbo|lightning|hyper-?sd|lcm|distill|few-?step|\b\d-?step", re.IGNORECASE)


def few_steps(model: ModelConfig) -> str | None:
    """A sentence where the model's name says that it was distilled to a few steps, which the loss does not suit."""
    if _FEW_STEPS.search(model.path.rstrip("/").rpartition("/")[2]):
        return (
            f"{model.path} seems to be distilled to a few steps: the loss is flow matching's over all times, under which such models "
            "grow blurred; train the model that it was distilled from."
        )
    return None


_OPTIONS: Mapping[str, Mapping[str, tuple[str | None, Part]]] = {  # of each scorer: option -> (its default, what is read)
    "clipscore": {"checkpoint": (CLIP_L, Part.MODEL)},
    "diversity": {"checkpoint": (CLIP_L, Part.MODEL)},
    "pickscore": {"checkpoint": (PICKSCORE, Part.MODEL), "processor": (None, Part.PROCESSOR)},
    "hpsv2": {"checkpoint": (HPSV2, Part.MODEL), "processor": (CLIP_L, Part.PROCESSOR)},
    "aesthetic": {"checkpoint": (CLIP_L, Part.MODEL), "head": (AESTHETIC_HEAD, Part.FILE)},
    "imagereward": {"checkpoint": (IMAGE_REWARD, Part.FILE), "tokenizer": (BERT, Part.PROCESSOR)},
}


def needs(reward: RewardConfig) -> dict[str, Part]:
    """What a reward reads: uri -> part. Of a scorer of the user's own: the options that are written as URIs, at any depth."""
    options = reward.options
    found = dict.fromkeys(_uris(options), Part.MODEL)
    if reward.scorer:
        return found
    for option, (default, part) in _OPTIONS.get(reward.name, {}).items():
        if isinstance(uri := options.get(option, default), str):
            found[uri] = part
    if reward.name == "pickscore" and PICKSCORE in found and not options.get("processor"):
        found[CLIP_H_PROCESSOR] = Part.PROCESSOR
    if reward.name == "ocr" and (recogniser := OCR_LANGUAGES.get(str(options.get("language")))):
        found[recogniser] = Part.FILE
    return found | (_of_geneval(options) if reward.name == "geneval" else {})


def _of_geneval(options: Mapping[str, Any]) -> dict[str, Part]:
    """Of its detector and its colour classifier, where they are ours. A detector that is not names the colours itself."""
    ours = str(options.get("detector", ":Mask2Former")).endswith(":Mask2Former")
    colors = str(options.get("colors") or (":ClipColors" if ours else ""))
    found = {}
    if ours:
        found[(options.get("detector_options") or {}).get("checkpoint", MASK2FORMER)] = Part.MODEL
    if colors.endswith(":ClipColors"):
        found[(options.get("colors_options") or {}).get("checkpoint", CLIP_L)] = Part.MODEL
    return found


def assets_of(config: RunConfig) -> list[Asset]:
    """Everything that a run reads, each once, the model first."""
    users: dict[str, list[str]] = {}
    parts: dict[str, Part] = {}
    for reward in config.measured:
        for uri, part in needs(reward).items():
            users.setdefault(uri, []).append(reward.name)
            parts[uri] = Part.MODEL if Part.MODEL in (part, parts.get(uri)) else part
    model = Asset(config.model.path, Part.PIPELINE, ("model",), config.model.revision)
    return [model, *(Asset(uri, parts[uri], tuple(names)) for uri, names in users.items())]


def _uris(value: Any) -> Iterator[str]:
    """Those that can be resolved; of the web's only what has a checkpoint's suffix, for an endpoint is none."""
    if isinstance(value, str) and value.startswith(SCHEMES):
        if not value.startswith("http") or value.endswith(_SUFFIXES):
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _uris(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _uris(inner)
