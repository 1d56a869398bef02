"""What each reward and each model needs from elsewhere."""

import subprocess
import sys

import pytest

from marble_core.config.loading import load_config
from marble_core.config.schema import ModelConfig, RewardConfig
from marble_core.rewards.cards import cards_of
from marble_core.rewards.checkpoints import CLIP_L
from marble_core.storage.artifacts import Part
from marble_core.storage.catalogue import assets_of, few_steps, needs
from marble_core.types import RewardCard

pytestmark = pytest.mark.usefixtures("cache")


# --------------------------------------------------------------------------------------------- the catalogue, and fetch
def test_the_options_of_a_scorer_of_ones_own_are_fetched_where_they_are_uris():
    options = {"weights": ["hf://a/b", {"head": "https://c/d.pth"}], "checkpoint": "org/name", "url": "https://api/v1", "n": 3}
    reward = RewardConfig(name="clipscore", scorer="mine:Scorer", options=options)
    assert {uri: asset.part for uri, asset in needs(reward, RewardCard()).items()} == {
        "hf://a/b": "model",
        "https://c/d.pth": "model",
    }


def test_an_asset_of_several_rewards_is_listed_once_and_wholly():
    rewards = '[{name: hpsv2, options: {checkpoint: "demo://rewards/clip"}}, {name: clipscore}, {name: aesthetic}]'
    config = load_config("demo", overrides=[f"rewards={rewards}", "model.revision=v1"])
    found = assets_of(config, cards_of(config.measured))
    assert (found[0].uri, found[0].part, found[0].users, found[0].revision) == ("demo://sd3", Part.PIPELINE, ("model",), "v1")
    (clip,) = (asset for asset in found if asset.uri == CLIP_L.uri)
    assert (
        clip.users == ("hpsv2", "clipscore", "aesthetic") and clip.part == Part.MODEL and clip.known.licence.startswith("MIT")
    )
    assert len({asset.uri for asset in found}) == len(found) == 4


def test_the_catalogue_and_the_assets_import_no_torch():
    script = "import sys, marble_core.storage.catalogue, marble_core.storage.downloads, marble_core.storage.hub; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("path", "few"),
    [
        ("black-forest-labs/FLUX.1-schnell", True),
        ("stabilityai/stable-diffusion-3.5-large-turbo", True),
        ("ByteDance/Hyper-SD", True),
        ("hf://someone/sd3.5-4step", True),
        ("/models/turbo/sd3.5-medium", False),
        ("stabilityai/stable-diffusion-3.5-medium", False),
        ("black-forest-labs/FLUX.1-dev", False),
        ("demo://sd3", False),
        ("s3://models/sd35-steps1000", False),
    ],
)
def test_a_model_that_was_distilled_to_a_few_steps_is_a_warning(path, few):
    assert (few_steps(ModelConfig(path=path)) is not None) == few
