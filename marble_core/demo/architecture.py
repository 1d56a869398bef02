"""The demo's StableDiffusion3Pipeline, untrained: its tokenizers, text encoders, VAE and transformer, and how it is saved."""

from __future__ import annotations

import string
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from marble_core.demo.scenes import PALETTE, SHAPES, SIZE

TEXT_LENGTH = 16  # tokens
LATENT_CHANNELS, LATENT_SIZE = 8, 8
WIDTH = 192  # of the transformer, and of the two text encoders together
LOG_VARIANCE = -4.6  # of the latents, the same everywhere: the encoder is trained as a plain one
WORDS = "an and on of left right above below that says sign text background small big ring stripes checks one two three four"
SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>")
PAD, BOS, EOS = 0, 1, 3  # eos must not be 2: CLIP would pool at the largest id then, a legacy rule


def vocabulary() -> list[str]:
    """Upper-case letters are tokens of their own, so that a word can be spelt; other words are whole, or letter by letter."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    words = {*WORDS.split(), *PALETTE, *SHAPES, *(f"{shape}s" for shape in SHAPES)}
    return [*SPECIAL, *string.ascii_uppercase, *characters, *(f"##{c}" for c in characters), *sorted(words)]


def tokenizer() -> PreTrainedTokenizerFast:
    return _wrap(_word_piece(f"{SPECIAL[BOS]} $A {SPECIAL[EOS]}"), TEXT_LENGTH)


def empty_tokenizer() -> PreTrainedTokenizerFast:
    """The third: any text is one <eos>, since nothing reads it."""
    inner = _word_piece(f"$A {SPECIAL[EOS]}")
    inner.normalizer = Replace(Regex(r"[\s\S]+"), "")
    return _wrap(inner, 64)


def _word_piece(template: str) -> Tokenizer:
    ids = {token: i for i, token in enumerate(vocabulary())}
    inner = Tokenizer(WordPiece(ids, unk_token="<unk>", continuing_subword_prefix="##"))
    inner.pre_tokenizer = Sequence([WhitespaceSplit(), Split(Regex("[A-Z]|[^A-Za-z]"), "isolated")])
    inner.post_processor = TemplateProcessing(single=template, special_tokens=[(SPECIAL[BOS], BOS), (SPECIAL[EOS], EOS)])
    return inner


def _wrap(inner: Tokenizer, length: int) -> PreTrainedTokenizerFast:
    names = dict(zip(("pad_token", "bos_token", "unk_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=length, padding_side="right", **names)


def text_encoder(width: int, layers: int, heads: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(vocabulary()),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=64,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=TEXT_LENGTH,
            hidden_act="gelu",
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


def silent_t5() -> T5EncoderModel:
    """Answers zeros, as the pipeline does where there is no third text encoder; but without one it cannot be loaded."""
    config = T5Config(
        vocab_size=len(vocabulary()),
        d_model=WIDTH,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=1,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    model = T5EncoderModel(config)
    nn.init.zeros_(model.encoder.final_layer_norm.weight)
    return model


def vae() -> Any:
    """An AutoencoderKL, f8, 8 channels. The log-variance's output is a constant."""
    channels = (16, 32, 48, 64)
    model: Any = AutoencoderKL(
        latent_channels=LATENT_CHANNELS,
        sample_size=SIZE,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        model.encoder.conv_out.weight[LATENT_CHANNELS:] = 0
        model.encoder.conv_out.bias[LATENT_CHANNELS:] = LOG_VARIANCE
    return model


def transformer() -> Any:
    """An SD3Transformer2DModel of 7.8 million weights; 16 image tokens."""
    heads, patch = 3, 2
    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=patch,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=6,
        attention_head_dim=WIDTH // heads,
        num_attention_heads=heads,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=128,
        pos_embed_max_size=LATENT_SIZE // patch,
        qk_norm="rms_norm",
    )


def assemble(
    vae: Any,
    transformer: Any,
    text_encoder: CLIPTextModelWithProjection,
    text_encoder_2: CLIPTextModelWithProjection,
    text_encoder_3: T5EncoderModel,
) -> Any:
    """The whole StableDiffusion3Pipeline; the transformer and the VAE become fp16."""
    return StableDiffusion3Pipeline(
        transformer=transformer.half().eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
        vae=vae.half().eval(),
        text_encoder=text_encoder.eval(),
        text_encoder_2=text_encoder_2.eval(),
        text_encoder_3=text_encoder_3.eval(),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        tokenizer_3=empty_tokenizer(),
    )
