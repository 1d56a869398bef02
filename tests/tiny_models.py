"""Tiny pipelines of the real classes with random weights, saved as the published ones are."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tiny_rewards import randomised

_SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
T5_WIDTH = 40


def clip_tokenizer(length: int = 77) -> CLIPTokenizer:
    """The 256 byte symbols and no merges."""
    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=length)


def clip_encoder(kind: type, hidden: int, projection: int, length: int = 77, seed: int = 0) -> torch.nn.Module:
    config = CLIPTextConfig(
        **_SIZES, vocab_size=514, hidden_size=hidden, projection_dim=projection, max_position_embeddings=length,
        bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    return randomised(kind(config), seed)


def t5_encoder(width: int = T5_WIDTH) -> torch.nn.Module:
    """T5 v1.1, whose feed-forward is gated."""
    config = T5Config(
        vocab_size=64, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    )  # fmt: skip
    return randomised(T5EncoderModel(config), 3)


def t5_tokenizer() -> T5Tokenizer:
    letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], extra_ids=0)


def vae(channels: int = 4, levels: int = 3) -> AutoencoderKL:
    """Latents have a quarter of the image's sides, an eighth with four levels."""
    torch.manual_seed(4)
    return AutoencoderKL(
        block_out_channels=(8,) * levels, down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels, norm_num_groups=4, sample_size=64, scaling_factor=1.5, shift_factor=0.06,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def sd3_parts(length: int = 77) -> dict[str, object]:
    """All of a StableDiffusion3Pipeline but its transformer."""
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": vae(),
        "text_encoder": clip_encoder(CLIPTextModelWithProjection, 16, 12, length),
        "tokenizer": clip_tokenizer(length),
        "text_encoder_2": clip_encoder(CLIPTextModelWithProjection, 20, 8, length, seed=1),
        "tokenizer_2": clip_tokenizer(length),
        "text_encoder_3": t5_encoder(),
        "tokenizer_3": t5_tokenizer(),
    }


def save_sd3(directory: Path, side: int = 16, levels: int = 3) -> str:
    """Three text encoders and both kinds of blocks, as SD3.5-Medium has them; latents of up to ``side`` x ``side``."""
    torch.manual_seed(5)
    transformer = SD3Transformer2DModel(
        sample_size=side, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=T5_WIDTH, caption_projection_dim=32, pooled_projection_dim=20, pos_embed_max_size=max(16, side // 2),
        qk_norm="rms_norm", dual_attention_layers=(0, 1),
    )  # fmt: skip
    StableDiffusion3Pipeline(transformer=transformer, **(sd3_parts() | {"vae": vae(levels=levels)})).save_pretrained(directory)
    return str(directory)


def save_flux(directory: Path, guidance_embeds: bool = True) -> str:
    """FLUX.1-dev's kinds of blocks, its guidance embedding and its shift by resolution."""
    torch.manual_seed(6)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=16, guidance_embeds=guidance_embeds, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae(), transformer=transformer,
        text_encoder=clip_encoder(CLIPTextModel, 16, 16), tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(), tokenizer_2=t5_tokenizer(),
    ).save_pretrained(directory)  # fmt: skip
    return str(directory)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Bytes, and the words of Qwen-Image's template, which are 34 tokens before the prompt as with the published one."""
    text = "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the objects and background:"
    words = [w for word in text.split() for w in (("Ġ" if word != "Describe" else "") + word.rstrip(",:"),)]
    words += ["system", "user", "assistant"]
    merges, symbols = {}, sorted(ByteLevel.alphabet())
    for word in words:
        for n in range(1, len(word)):
            merges[(word[:n], word[n])] = word[: n + 1]
    vocabulary = [*symbols, *dict.fromkeys(merges.values()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate(vocabulary)}, merges=list(merges),
        additional_special_tokens=["<|im_start|>", "<|im_end|>"], model_max_length=131072,
    )  # fmt: skip


def qwen_encoder(vocabulary: int, width: int) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL with a tower for images, which Qwen-Image does not use."""
    text = {
        "hidden_size": width, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": vocabulary, "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width}
    return randomised(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)), 7)


def save_qwen_image(directory: Path) -> str:
    """Qwen-Image's classes and schedule; latents have an eighth of the image's sides, as the published ones."""
    torch.manual_seed(8)
    width, tokenizer = 16, qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=width,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 1.1, 2.0]
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192, shift_terminal=0.02
    )  # fmt: skip
    QwenImagePipeline(
        scheduler=scheduler, vae=autoencoder, text_encoder=qwen_encoder(len(tokenizer), width), tokenizer=tokenizer, transformer=transformer
    ).save_pretrained(directory)  # fmt: skip
    return str(directory)
