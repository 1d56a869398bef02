"""Wishes that GenEval cannot judge are refused before an image is, by what the detector's source says that it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marble_core.config.loading import load_config
from marble_core.config.schema import RewardConfig, RunConfig
from marble_core.demo.prompts import generate as demo_prompts
from marble_core.prompts.generate import generate
from marble_core.rewards.applies import check_prompts
from marble_core.rewards.cards import cards_of
from marble_core.rewards.geneval.vocabulary import Vocabulary, vocabulary
from marble_core.types import MarbleError, Placed, Prompt
from prompt_files import sentence

SHAPES_DETECTOR = "marble_core.demo.shapes:ShapesDetector"
CUP = {"class": "cup", "count": 1}


def config(*rewards: dict[str, Any]) -> RunConfig:
    base = load_config("demo")
    own = tuple(RewardConfig.model_validate({"name": "geneval"} | reward) for reward in rewards)
    return base.model_copy(update={"rewards": own})


def check_wishes(config: RunConfig, train: list[Placed], evaluation: list[Placed]) -> list[str]:
    return check_prompts(config, {"train": train, "evaluation": evaluation}, cards_of(config.measured))


def checked(include: list[dict[str, Any]], exclude: tuple[dict[str, Any], ...] = (), **options: Any) -> list[str]:
    prompt = Prompt("a photo", "geneval", {"include": tuple(include), "exclude": exclude})
    return check_wishes(config({"options": options}), [Placed(prompt, "p.jsonl, line 7")], [])


@pytest.mark.parametrize(
    ("include", "options", "says"),
    [
        ([CUP, {"class": "dogs", "count": 1}], {}, "include[1].class is 'dogs', a class that .*; the nearest is 'dog'"),
        ([{"class": "Dog", "count": 1}], {}, "the nearest is 'dog'"),
        ([{"class": "keyboard", "count": 1}], {}, "the nearest is 'computer keyboard'"),
        ([{"class": "unicorn", "count": 1}], {}, "it knows person, bicycle, car, .*, ..."),
        ([CUP | {"color": "Red"}], {}, "include[0].color is 'Red', a colour that .*; the nearest is 'red'"),
        ([CUP | {"color": "gray"}], {}, "it knows red, orange, yellow, green, blue, purple, pink, brown, black, white"),
        ([CUP | {"count": 20}], {}, "'include' wants 20 of 'cup', but only the 16 surest .* max_objects to 21"),
        ([CUP | {"count": 9}, CUP | {"count": 7, "color": "red"}], {}, "wants 16 of 'cup'"),
        ([CUP | {"color": "red"}, CUP | {"color": "blue"}], {"published": True}, "names a class more than once"),
        ([CUP, *[CUP | {"position": ["above", 0]}] * 6], {}, "5040 ways, more than the 1000"),
    ],
)
def test_a_wish_that_cannot_be_judged_is_refused_with_its_line(
    include: list[dict[str, Any]], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(MarbleError) as error:
        checked(include, **options)
    sentence(error, "p.jsonl, line 7: ", *says.split(".*"))


@pytest.mark.parametrize("exclude", [{"class": "cup", "count": 2}, {"class": "cup", "count": 1}, {"class": "Dog", "count": 1}])
def test_an_exclusion_that_no_image_can_keep_or_break_is_refused(exclude: dict[str, Any]) -> None:
    with pytest.raises(MarbleError) as error:
        checked([CUP | {"count": 2}], (exclude,))
    sentence(error, "p.jsonl, line 7: exclude[0]")
    assert checked([CUP | {"count": 2}], ({"class": "cup", "count": 3}, {"class": "dog", "count": 1})) == []


def test_what_can_be_judged_passes() -> None:
    assert checked([CUP | {"color": "red"}, CUP | {"color": "blue", "position": ["left of", 0]}]) == []
    assert checked([CUP | {"count": 15}]) == checked([CUP | {"count": 20}], max_objects=21) == []
    assert checked([CUP], published=True) == []
    placed = [[Placed(p, "") for p in make("geneval", 2000, 0, False)] for make in (generate, demo_prompts)]
    for published in (False, True):
        assert check_wishes(config({"options": {"published": published}}), placed[0], placed[0]) == []
        options = {"detector": SHAPES_DETECTOR, "published": published}
        assert check_wishes(config({"options": options}), placed[1], placed[1]) == []


def test_the_evaluations_prompts_are_held_against_the_detector_too_and_a_reward_by_its_path() -> None:
    wrong = [Placed(Prompt("mugs", "geneval", {"include": [{"class": "mug", "count": 1}]}), "q.jsonl, line 1")]
    named = {"name": "right", "scorer": "marble_core.rewards.geneval.rules:GenEval", "options": {"rule": "strict"}}
    for reward in ({}, named):
        with pytest.raises(MarbleError, match=r"^q\.jsonl, line 1: "):
            check_wishes(config(reward), [], wrong)
    assert check_wishes(config({"name": "clipscore"}), wrong, []) == []


def test_what_the_source_says_of_our_own_classes_is_what_they_know() -> None:
    from marble_core.demo.shapes import ShapesDetector
    from marble_core.rewards.geneval.colors import ClipColors
    from marble_core.rewards.geneval.mask2former import Mask2Former

    assert vocabulary({}) == Vocabulary(tuple(Mask2Former.classes), tuple(ClipColors.color_names), {})
    shapes = vocabulary({"detector": SHAPES_DETECTOR})
    assert shapes == Vocabulary(tuple(ShapesDetector.classes), tuple(ShapesDetector.color_names), {})
    assert vocabulary({"colors": SHAPES_DETECTOR}).colors == shapes.colors


NAMES = 'FRUIT: tuple[str, ...] = ("apple", "pear")\nSHADES = {**{"red": 0}, "blue": 1}\n'
HEAD = "from .names import FRUIT\nfrom .names import SHADES as TINTS\nimport torch\nraise RuntimeError('this module was imported')\n"
OWN = "    def colors(self, image_HWC, detections):\n        return []\n"
SOURCES = {
    "plain": ("class Own:\n    classes = ['cup', 'dog']\n", ("cup", "dog"), "clip"),
    "from_another_module": ("class Own:\n    classes = (*FRUIT, 'fig')\n    color_names = tuple(TINTS)\n" + OWN,
                            ("apple", "pear", "fig"), ("red", "blue")),
    "inherited": ("class Base:\n    classes = FRUIT\n    color_names = {'red'}\n" + OWN + "class Own(Base):\n    pass\n",
                  ("apple", "pear"), ("red",)),
    "of_a_foreign_base": ("class Own(torch.nn.Module):\n    classes = FRUIT\n", ("apple", "pear"), None),
    "set_by_an_option": ("class Own:\n    classes = FRUIT\n    def __init__(self, classes):\n        self.classes = classes\n",
                         None, "clip"),
    "computed": ("class Own:\n    classes = tuple(name.lower() for name in FRUIT)\n    color_names = FRUIT + TINTS\n" + OWN,
                 None, None),
    "a_property": ("class Own:\n    @property\n    def classes(self):\n        return FRUIT\n", None, "clip"),
    "unsaid": ("class Own:\n    pass\n" , None, "clip"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_a_users_detector_is_read_and_not_imported(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, classes, colors = SOURCES[kind]
    package = tmp_path / f"mine_{kind}"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('this package was imported')\n")
    (package / "names.py").write_text(NAMES)
    (package / "detector.py").write_text(HEAD + source)
    monkeypatch.syspath_prepend(tmp_path)
    path = f"{package.name}.detector:Own"
    known = vocabulary({"detector": path})
    assert (known.classes, known.colors) == (classes, vocabulary({}).colors if colors == "clip" else colors)
    assert known.unsaid.keys() == {key for key, value in (("class", classes), ("color", colors)) if value is None}
    said = checked([{"class": "apple" if classes is None else classes[0], "count": 1}], detector=path)
    assert len(said) == (classes is None) and all(
        path in s and "were not checked" in s and "attribute classes" in s for s in said
    )


@pytest.mark.parametrize("path", ["nowhere.at_all:Own", "marble_core.demo.shapes:Nobody", "marble_core", "math:Own", "a..b:C"])
def test_a_detector_without_a_source_here_is_said_and_not_refused(path: str) -> None:
    said = checked([{"class": "anything", "count": 1, "color": "any"}], detector=path)
    assert len(said) == 2 and path in said[0] and path in said[1]
