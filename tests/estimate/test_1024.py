"""1024 px by estimate: what the documents say of it, and tiles where decoding does not fit."""

import pytest

from marble_core.config.loading import load_config
from marble_core.estimate import GIB, hours_of, sizes_of
from marble_core.types import MarbleError
from paths import ROOT
from with_cards import check_fits, memory_of, resolve_batch_sizes

QWEN = ["model.path=Qwen/Qwen-Image", "model.family=qwen-image"]
SMALL = ["rewards=[{name: compressibility}]", "evaluation.rewards=[]", "hardware.memory_gib=9.5"]


def sized(preset: str, pixels: int, *overrides: str):
    config = load_config(preset, overrides=[f"model={{height: {pixels}, width: {pixels}}}", *overrides])
    config = resolve_batch_sizes(config)
    check_fits(config)
    return config


def row(label: str, preset: str, *overrides: str) -> str:
    cells: list[list[str]] = [[], [], []]
    for pixels in (512, 1024):
        config = sized(preset, pixels, *overrides)
        sizes = sizes_of(config.model)
        hours = hours_of(config, sizes)
        found = config.loss.micro_batch, f"{memory_of(config, sizes).peak / GIB:.1f}", f"{hours.low:.0f} to {hours.high:.0f}"
        for cell, value in zip(cells, found, strict=True):
            cell.append(str(value))
    return f"| {label} | {' | '.join(', '.join(cell) for cell in cells)} |"


@pytest.mark.parametrize("preset", ["sd35-medium-1gpu-24g", "sd35-medium-1gpu-80g", "sd35-medium-8gpu", "sd35-large"])
def test_the_table_of_1024_px_is_the_estimates(preset):
    assert row(f"`{preset}`", preset) in (ROOT / "docs/performance.md").read_text(encoding="utf-8").splitlines()


def test_the_tables_row_of_qwen_image_is_the_estimates():
    said = (ROOT / "docs/performance.md").read_text(encoding="utf-8").splitlines()
    assert row("`sd35-large` with Qwen-Image", "sd35-large", *QWEN) in said


@pytest.mark.parametrize("preset", ["sd35-medium-1gpu-24g", "sd35-medium-8gpu", "sd35-large"])
def test_decoding_is_no_presets_largest_phase_at_1024_px_and_tiles_take_a_quarter(preset):
    whole, tiled = (sized(preset, 1024, f"model.vae_tiling={flag}") for flag in ("false", "true"))
    memory, in_tiles = (memory_of(config, sizes_of(config.model)) for config in (whole, tiled))
    assert memory.total("decoding") < memory.peak
    assert memory.phases["decoding"]["activations"] == 4 * in_tiles.phases["decoding"]["activations"] == 3 * GIB


def test_where_decoding_is_what_does_not_fit_the_refusal_names_tiles_and_they_fit():
    tight = [*SMALL, "model={offload: all, t5: cpu, gradient_checkpointing: true}"]
    with pytest.raises(MarbleError, match=r"set model\.vae_tiling=true"):
        sized("sd35-medium-1gpu-24g", 1024, *tight)
    assert sized("sd35-medium-1gpu-24g", 1024, *tight, "model.vae_tiling=true").loss.micro_batch >= 1
