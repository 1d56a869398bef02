"""What autograd keeps of a forward, against the estimate's arithmetic."""

from dataclasses import replace

import pytest
import torch

from marble_core.algorithm.row_gradients import RowGradients
from marble_core.bench.kernels import Counting
from marble_core.bench.probe import Probe
from marble_core.bench.shapes import Shape
from marble_core.config.loading import load_config
from marble_core.estimate import sizes_of
from marble_core.estimate.memory import _kept
from marble_core.estimate.sizes import Sizes
from marble_core.models.policy import Policy
from marble_core.types import Conditioning
from meta_qwen_image import meta_qwen_image
from paths import ROOT


def kept_bytes(sizes: Sizes, side: int, dtype: torch.dtype, rank: int) -> int:
    """What autograd keeps of a forward of two images under ``RowGradients`` with CUDA's kernels: every storage once, without the
    weights."""
    shape = Shape(
        name="small", side=side, text_tokens=sizes.text_tokens, images=2, rank=rank,
        transformer={
            "sample_size": side, "pos_embed_max_size": side, "in_channels": 4, "out_channels": 4, "num_layers": sizes.blocks,
            "attention_head_dim": 64, "num_attention_heads": sizes.heads, "joint_attention_dim": 32,
            "caption_projection_dim": sizes.width, "pooled_projection_dim": 16, "qk_norm": "rms_norm",
            "dual_attention_layers": tuple(range(1, 1 + sizes.dual)),
        },
    )  # fmt: skip
    probe = Probe(shape, "meta", dtype)
    return kept_by(probe.policy, probe.x_BCHW, probe.t_B, Conditioning(probe.tokens, probe.pooled))


def kept_by(policy: Policy, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> int:
    weights = {id(t.untyped_storage()): t for t in policy.transformer.state_dict().values()}
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor.untyped_storage()) not in weights:
            found[id(tensor.untyped_storage())] = tensor
        return tensor

    rows = RowGradients(policy.layers_of("default"), 1)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with policy.using("default") as model, rows.capturing(), Counting(), hooks:
        model.velocity(x_BCHW, t_B, conditioning)
    return sum(t.untyped_storage().nbytes() for t in found.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("blocks", "dual", "side", "text"), [(2, 0, 16, 40), (4, 0, 24, 20), (4, 3, 16, 80)])
def test_what_a_forward_keeps_is_what_is_counted_tensor_by_tensor(precision, blocks, dual, side, text):
    config = load_config(
        "demo", overrides=[f"model={{height: {8 * side}, width: {8 * side}, precision: {precision}}}", "lora.rank=8"]
    )
    medium = sizes_of(load_config("sd35-medium-8gpu").model)
    assert medium is not None
    sizes = replace(medium, width=256, heads=4, blocks=blocks, dual=dual, text_tokens=text)
    counted = kept_bytes(sizes, side, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision], rank=8)
    estimated = 2 * _kept(config, sizes, {"fp32": 4, "bf16": 2}[precision], blocks, dual, 0, whole=False)
    assert estimated == pytest.approx(counted, rel=0.01)


def test_an_image_of_sd35_medium_keeps_at_most_1_6_gib():
    """All 24 blocks at 512 px; the preset's estimate says the same."""
    config = load_config("sd35-medium-8gpu")
    sizes = sizes_of(config.model)
    assert sizes is not None
    found = kept_bytes(sizes, 64, torch.bfloat16, config.lora.rank) / 2
    print(f"kept by an image: {found / 2**30:.2f} GiB")
    assert found <= 1.6 * 2**30 and f"{found / 2**30:.2f} GiB after" in (ROOT / "docs/performance.md").read_text(
        encoding="utf-8"
    )
    assert _kept(config, sizes, 2, sizes.blocks, sizes.dual, 0, whole=False) == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("blocks", "side", "text"), [(3, 16, 40), (6, 12, 40), (4, 16, 80)])
def test_what_a_forward_of_qwen_image_keeps_is_what_is_counted_tensor_by_tensor(precision, blocks, side, text):
    config = load_config(
        "demo", overrides=[f"model={{height: {16 * side}, width: {16 * side}, precision: {precision}}}", "lora.rank=8"]
    )
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    published = sizes_of(load_config("demo", overrides=["model.path=Qwen/Qwen-Image"]).model)
    assert published is not None
    sizes = replace(published, width=256, heads=2, blocks=blocks, text_tokens=text)
    counted = [
        kept_by(policy, *given) for n in (blocks - 1, blocks) for policy, given in [meta_qwen_image(n, 2, side, text, dtype, 8)]
    ]
    estimated = [2 * _kept(config, sizes, dtype.itemsize, n, 0, 0, whole=True) for n in (blocks - 1, blocks)]
    assert estimated[1] - estimated[0] == pytest.approx(counted[1] - counted[0], rel=0.01)
