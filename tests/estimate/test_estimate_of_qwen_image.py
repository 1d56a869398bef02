"""Qwen-Image at its real size, by shape and by the table, and at tiny size by its files."""

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

from marble_core.config.loading import load_config
from marble_core.estimate import GIB, hours_of, sizes_of
from marble_core.estimate.sizes import Sizes
from marble_core.models.qwen_image import QwenImage
from marble_core.types import MarbleError
from tiny_models import save_qwen_image
from with_cards import check_fits, memory_of, resolve_batch_sizes


def numbers(model: torch.nn.Module) -> int:
    return sum(t.numel() for t in model.state_dict().values())


def known(path: str) -> Sizes:
    sizes = sizes_of(load_config("sd35-large", overrides=[f"model.path={path}"]).model)
    assert sizes is not None
    return sizes


QWEN = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
# Published: the arguments' defaults of diffusers' classes, and QWEN with "num_key_value_heads": 4 and "vocab_size": 152064.


def test_qwen_image_has_the_sizes_that_the_table_says_and_twenty_billion_weights():
    with torch.device("meta"):
        transformer, autoencoder = QwenImageTransformer2DModel(), AutoencoderKLQwenImage()
        encoder = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**QWEN, num_key_value_heads=4, vocab_size=152064))
    assert dict(transformer.config) | {"num_layers": 60, "num_attention_heads": 24, "joint_attention_dim": 3584} == dict(
        transformer.config
    )
    sizes = known("Qwen/Qwen-Image")
    layers = [m for n, m in transformer.named_modules() if n.endswith(QwenImage.lora_targets)]
    assert sizes.lora(32) == sum(32 * (layer.in_features + layer.out_features) for layer in layers) and len(layers) == 60 * 8
    assert (sizes.transformer, sizes.vae, sizes.t5) == tuple(map(numbers, (transformer, autoencoder, encoder)))
    assert sizes.transformer == pytest.approx(20.4e9, rel=0.005)
    assert (sizes.image_tokens(1024, 1024), sizes.text_tokens, sizes.channels) == (4096, 256, autoencoder.z_dim)


def test_the_files_of_a_qwen_image_give_its_sizes_and_of_the_encoder_what_is_loaded(tmp_path):
    model = QwenImage(
        load_config("demo", overrides=[f"model.path={save_qwen_image(tmp_path)}", "model.family=qwen-image"]).model
    )
    sizes = sizes_of(model.config)
    parts = (model.transformer, model.vae, model.pipeline.text_encoder)
    assert (sizes.transformer, sizes.vae, sizes.t5) == tuple(map(numbers, parts))
    assert (sizes.rotary, sizes.ends_in_image, sizes.vae_factor, sizes.channels, sizes.width) == (True, False, 8, 4, 32)


def test_qwen_image_fits_one_gpu_of_80_gb_with_offloaded_encoders_and_is_refused_on_24():
    asked = ["model.path=Qwen/Qwen-Image", "model.family=qwen-image", "model={offload: encoders, gradient_checkpointing: true}"]
    config = resolve_batch_sizes(load_config("sd35-medium-1gpu-80g", overrides=[*asked, "model={height: 1024, width: 1024}"]))
    check_fits(config)
    memory, sizes = memory_of(config, sizes_of(config.model)), sizes_of(config.model)
    assert 38 < memory.phases["training"]["transformer"] / GIB < 39 and config.loss.micro_batch >= 2
    hours = hours_of(config, sizes)
    medium = resolve_batch_sizes(load_config("sd35-medium-1gpu-80g"))
    assert hours.low > 10 * hours_of(medium, sizes_of(medium.model)).low
    with pytest.raises(MarbleError, match="memory"):
        check_fits(resolve_batch_sizes(load_config("sd35-medium-1gpu-24g", overrides=asked)))
