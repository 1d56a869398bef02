"""What a reward says of itself before it is loaded: a card that needs no torch, and is true."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from marble_core.config.imports import import_class
from marble_core.config.loading import load_config
from marble_core.config.schema import RewardConfig
from marble_core.estimate import memory_of, sizes_of
from marble_core.rewards.applies import check_heard, check_prompts
from marble_core.rewards.cards import cards_of
from marble_core.rewards.registry import SCORERS, load_scorers
from marble_core.rewards.scoring import score_all
from marble_core.storage.catalogue import assets_of
from marble_core.types import MarbleError, Placed, Prompt
from paths import ROOT

WITHOUT = (
    "torch",
    "transformers",
    "PIL",
    "rapidocr",
    "onnxruntime",
    "rapidfuzz",
    "ftfy",
    "tokenizers",
    "huggingface_hub",
    "jinja2",
)


def test_every_card_is_read_where_nothing_that_loads_a_network_is_installed():
    script = f"""
import sys
for name in {WITHOUT!r}: sys.modules[name] = None
from marble_core.config.schema import RewardConfig
from marble_core.config.imports import import_class
from marble_core.rewards.registry import SCORERS
for path in SCORERS.values(): assert import_class(path, path).card.assets({{}}) is not None
from marble_core.rewards.cards import cards_of
print(len([card for card in cards_of([RewardConfig(name=name) for name in SCORERS]).values() if card.assets({{}})]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("8\n", ""), (
        "clipscore, diversity, pickscore, hpsv2, hpsv3, aesthetic, imagereward, geneval read something"
    )


def test_what_a_card_says_is_read_is_what_the_scorer_reads_by_default():
    for name in ("clipscore", "diversity", "pickscore", "hpsv2", "hpsv3", "aesthetic", "imagereward"):
        cls = import_class(SCORERS[name], name)
        defaults = [p.default for p in inspect.signature(cls).parameters.values() if isinstance(p.default, str)]
        uris = [asset.uri for asset in cls.card.assets({})]
        assert set(uris) - set(defaults) <= {"laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}, name
        other = {
            option: f"s3://mine/{option}"
            for option in ("checkpoint", "processor", "head", "tokenizer", "instruction")
            if option in inspect.signature(cls).parameters
        }
        assert {asset.uri for asset in cls.card.assets(other)} == set(other.values())
    geneval = import_class(SCORERS["geneval"], "geneval").card
    assert [asset.part for asset in geneval.assets({})] == ["model", "model"]
    assert geneval.assets({"detector": "mine:Detector"}) == []
    meta = {"detector_options": {"checkpoint": "facebook/mask2former-swin-small-coco-instance"}}
    assert geneval.assets(meta)[0].licence.startswith("CC BY-NC")


@pytest.mark.parametrize("package", ["storage", "estimate", "prompts", "config", "tracking"])
def test_no_package_below_knows_a_reward_by_name(package: str):
    """But for the presets and examples in sentences, which begin with a letter or a brace inside the string."""
    for file in sorted((ROOT / "marble_core" / package).rglob("*.py")):
        literals = re.findall(r"""["'](\w+)["']""", file.read_text(encoding="utf-8"))
        own = {"ocr", "geneval"} if package == "prompts" else set()  # sources of these names
        assert not (set(SCORERS) - own) & set(literals), file


OWN = """
import numpy as np
from marble_core.types import MarbleError, RewardAsset, RewardCard

def check(options, sets):
    for name, prompts in sets.items():
        for placed in prompts:
            if placed.prompt.metadata.get("reference") == "":
                raise MarbleError(f"{placed.where}: an empty reference.")
    return [f"{len(prompts)} prompts of {name}" for name, prompts in sets.items()]

class Likeness:
    value_range = (0.0, 1.0)
    card = RewardCard(
        assets=lambda options: [RewardAsset("hf://my/network", licence="mine", size="7 GB", weights=10**9)],
        applies=lambda prompt, options: options["key"] in prompt.metadata,
        check=check,
        host_memory=2**30,
    )

    def __init__(self, key="reference"):
        self.key = key

    def applies(self, prompt):
        return self.key in prompt.metadata

    def score(self, images_NHWC, prompts):
        return np.linspace(0, 1, len(prompts))

    def self_check(self):
        pass
"""


def test_a_users_scorer_has_a_card_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_likeness.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = RewardConfig(name="likeness", scorer="my_likeness:Likeness", options={"key": "reference"})
    config = load_config("demo").model_copy(update={"rewards": (own,)})
    cards = cards_of(config.measured)
    (asset,) = [a for a in assets_of(config, cards) if a.users == ("likeness",)]
    assert (asset.uri, asset.known.licence, asset.known.size) == ("hf://my/network", "mine", "7 GB")
    sizes = sizes_of(config.model)
    with_it, without = (memory_of(config, sizes, known).phases["sampling"]["scorers"] for known in (cards, {}))
    assert with_it - without == 4 * 10**9 + 2**30
    plain, told = Prompt("a", "mine"), Prompt("b", "mine", {"reference": "x"})
    with pytest.raises(MarbleError, match=r"'likeness' applies to none of the 1 prompts of data.train"):
        check_heard(config, [plain], [told], cards)
    check_heard(config, [told], [told], cards)
    assert check_prompts(config, {"train": [Placed(told, "p, line 1")], "evaluation": []}, cards) == [
        "1 prompts of train",
        "0 prompts of evaluation",
    ]
    with pytest.raises(MarbleError, match=r"^p, line 2: an empty reference\.$"):
        check_prompts(config, {"train": [Placed(Prompt("c", "mine", {"reference": ""}), "p, line 2")]}, cards)


def test_a_scorer_whose_module_cannot_be_imported_here_has_an_empty_card():
    card = cards_of([RewardConfig(name="mine", scorer="no_such_module:Scorer")])["mine"]
    assert list(card.assets({})) == [] and card.applies(Prompt("x", "y"), {}) and card.check({}, {}) == []


def test_loading_writes_nothing_into_the_users_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One class that hands out one object serves under two names, each with its own time limit."""
    shared = (
        OWN
        + """
    __slots__ = ("key",)
"""
    )
    (tmp_path / "my_slots.py").write_text(shared)
    monkeypatch.syspath_prepend(tmp_path)
    rewards = [RewardConfig(name=name, scorer="my_slots:Likeness", timeout=limit) for name, limit in (("one", 5), ("two", 7))]
    scorers = load_scorers(rewards)
    assert [(s.name, s.timeout) for s in scorers] == [("one", 5), ("two", 7)] and scorers[0].key == "reference"
    prompts = [Prompt("a", "mine", {"reference": "x"}), Prompt("b", "mine")]
    table = score_all(scorers, np.zeros((2, 8, 8, 3), np.uint8), prompts)
    assert table.names == ("one", "two")
    np.testing.assert_array_equal(table.R_NK, [[0, 0], [np.nan, np.nan]])


def test_a_card_and_its_scorer_agree_on_the_prompts_that_they_apply_to():
    from marble_core.rewards.geneval.rules import GenEval
    from marble_core.rewards.ocr import Ocr
    from marble_core.rewards.questions import Questions

    prompts = [
        Prompt("x", "a"), Prompt('a "B"', "a"), Prompt("x", "a", {"text": "B"}), Prompt("x", "a", {"text": "  "}),
        Prompt("x", "a", {"include": []}), Prompt("x", "a", {"include": [{"class": "star", "count": 1}]}), Prompt("x", "a", {"vqa_list": [["q", "a"]]}),
    ]  # fmt: skip
    for scorer, options in (
        (Ocr(reader=lambda images: []), {}),
        (Ocr(reader=lambda images: [], any_quote=True), {"any_quote": True}),
        (GenEval("marble_core.demo.shapes:ShapesDetector"), {}),
        (Questions("http://127.0.0.1:1/v1", "vlm"), {}),
    ):
        assert [scorer.applies(p) for p in prompts] == [scorer.card.applies(p, options) for p in prompts], scorer
        assert any(scorer.applies(p) for p in prompts)
