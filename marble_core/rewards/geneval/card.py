"""What can be said of GenEval before its detector is loaded: what it reads, the prompts that it can use and judge. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from marble_core.prompts.metadata import included
from marble_core.rewards.checkpoints import CLIP_L, named
from marble_core.rewards.geneval.vocabulary import vocabulary
from marble_core.rewards.geneval.wishes import MAX_OBJECTS, unknown_name, unmeetable
from marble_core.types import MarbleError, Options, Placed, Prompt, RewardAsset, RewardCard

MASK2FORMER = RewardAsset(
    "https://download.openmmlab.com/mmdetection/v2.0/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco/"
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
    licence="Apache-2.0",
    size="0.3 GB",
    note="the paper's detector",
    weights=68_700_000,
    activations=800 * 800 * 30,  # of its features
    images=16,
)
MASK2FORMER_META = RewardAsset(
    "facebook/mask2former-swin-small-coco-instance",
    licence="CC BY-NC 4.0 (Meta's model zoo)",
    size="0.3 GB",
    note="not the paper's detector, not for commercial use",
    weights=68_700_000,
    activations=800 * 800 * 30,
    images=16,
)


def _assets(options: Options) -> list[RewardAsset]:
    """Of its detector and its colour classifier, where they are ours. A detector that is not names the colours itself."""
    ours = str(options.get("detector", ":Mask2Former")).endswith(":Mask2Former")
    colors = str(options.get("colors") or (":ClipColors" if ours else ""))
    found = named(options.get("detector_options") or {}, "checkpoint", MASK2FORMER, MASK2FORMER_META) if ours else []
    if colors.endswith(":ClipColors"):
        found += named(options.get("colors_options") or {}, "checkpoint", CLIP_L)
    return found


def _can_use(prompt: Prompt, options: Options) -> bool:
    return bool(included(prompt))


def _check(options: Options, sets: Mapping[str, Sequence[Placed]]) -> list[str]:
    """Raises MarbleError for the first prompt that GenEval cannot judge: a class or colour that its detector does not know, more
    objects than it keeps, no image that is right. Returns a sentence for each thing that the detector's source does not say."""
    known = vocabulary(options)
    most = options.get("max_objects", MAX_OBJECTS)
    most = most if isinstance(most, int) else MAX_OBJECTS  # what is no number is refused where the reward is constructed
    asked: set[str] = set()
    for placed in (one for prompts in sets.values() for one in prompts if included(one.prompt)):
        wrong = unknown_name(placed.prompt, known.classes, known.colors)
        if wrong := wrong or unmeetable(placed.prompt, most, bool(options.get("published"))):
            raise MarbleError(f"{placed.where}: {wrong}.")
        asked.update(key for wish in included(placed.prompt) for key in wish)
    return [sentence for key, sentence in known.unsaid.items() if key in asked]


CARD = RewardCard(
    _assets, _can_use, _check, says="Whether the wanted objects are there, in number, colour and place, by a detector: 0 to 1."
)
