"""Fewer kernels and bytes for the same numbers: what diffusers' transformers do in more of both than they need."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
    RMSNorm,
    SD35AdaLayerNormZeroX,
)


class FusedRMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, one kernel on a GPU where diffusers' own takes seven. In float32 both give the same bits, gradients included;
    in bfloat16 this one is nearer to float64, for it rounds once.

    Attention gives it heads before tokens, as a transposed view. The kernel wants rows in order, so it gets them as they lie.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 4 and not x.is_contiguous():
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        return super().forward(x)


def lighten(transformer: torch.nn.Module, dtype: torch.dtype) -> None:
    """Everything of this file, for a transformer in that precision."""
    fuse_norms(transformer)
    if dtype != torch.float32:
        fuse_modulations(transformer)


def fuse_norms(transformer: torch.nn.Module) -> None:
    """Put torch's RMSNorm in the place of diffusers', with the same weights under the same names."""
    for name, module in list(transformer.named_modules()):
        if isinstance(module, RMSNorm) and module.bias is None:
            fused = FusedRMSNorm(tuple(module.dim), eps=module.eps, elementwise_affine=False)
            fused.register_parameter("weight", module.weight)
            fused.elementwise_affine = module.weight is not None
            parent, _, own = name.rpartition(".")
            setattr(transformer.get_submodule(parent), own, fused)


def fuse_modulations(transformer: torch.nn.Module) -> None:
    """One kernel and one rounding for ``x (1 + scale) + shift``, where diffusers has three of each; in SD3's blocks also for the gates.

    For precisions narrower than float32: there the roundings cost more than autocast's, and float32 keeps diffusers' bits.
    """
    for module in transformer.modules():
        if fused := _FUSED.get(type(module)):
            module.__class__ = fused


def modulated(x_BLD: torch.Tensor, scale_BD: torch.Tensor, shift_BD: torch.Tensor) -> torch.Tensor:
    """x (1 + scale) + shift in x's precision, computed in at least float32 and rounded once; a gradient reaches x."""
    scale_B1D, shift_B1D = scale_BD[:, None], shift_BD[:, None]
    if scale_BD.requires_grad or shift_BD.requires_grad or torch.compiler.is_compiling():  # a compiler fuses it by itself
        wide = torch.promote_types(x_BLD.dtype, torch.float32)
        return torch.addcmul(shift_B1D.to(wide), x_BLD.to(wide), 1 + scale_B1D.to(wide)).to(x_BLD.dtype)
    result: torch.Tensor = _Modulated.apply(x_BLD, scale_B1D, shift_B1D)
    return result


def gated(x_BLD: torch.Tensor, gate_BD: torch.Tensor, y_BLD: torch.Tensor) -> torch.Tensor:
    """x + gate y, rounded once."""
    return torch.addcmul(x_BLD, gate_BD[:, None], y_BLD)


class _Modulated(torch.autograd.Function):
    """A kernel reads its operands in their own precision and writes in ``out``'s, which autograd lets nobody name outside of this."""

    @staticmethod
    def forward(ctx, x, scale, shift):  # type: ignore[no-untyped-def]
        wide = torch.promote_types(x.dtype, torch.float32)
        factor = 1 + scale.to(wide)
        ctx.save_for_backward(factor)
        return torch.addcmul(shift.to(wide), x, factor, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx, d):  # type: ignore[no-untyped-def]
        (factor,) = ctx.saved_tensors
        return torch.mul(d, factor, out=torch.empty_like(d)), None, None


class _Zero(AdaLayerNormZero):
    def forward(self, x: Any, timestep: Any = None, class_labels: Any = None, hidden_dtype: Any = None, emb: Any = None) -> Any:
        if self.emb is not None:
            emb = self.emb(timestep, class_labels, hidden_dtype=hidden_dtype)
        shift, scale, *others = self.linear(self.silu(emb)).chunk(6, dim=1)
        return modulated(self.norm(x), scale, shift), *others


class _ZeroSingle(AdaLayerNormZeroSingle):
    def forward(self, x: Any, emb: Any = None) -> Any:
        shift, scale, gate = self.linear(self.silu(emb)).chunk(3, dim=1)
        return modulated(self.norm(x), scale, shift), gate


class _ZeroDual(SD35AdaLayerNormZeroX):
    def forward(self, hidden_states: Any, emb: Any = None) -> Any:
        shift, scale, *others, shift2, scale2, gate2 = self.linear(self.silu(emb)).chunk(9, dim=1)
        normed = self.norm(hidden_states)
        return modulated(normed, scale, shift), *others, modulated(normed, scale2, shift2), gate2


class _Continuous(AdaLayerNormContinuous):
    def forward(self, x: Any, conditioning_embedding: Any) -> Any:
        scale, shift = self.linear(self.silu(conditioning_embedding).to(x.dtype)).chunk(2, dim=1)
        return modulated(self.norm(x), scale, shift)


class _JointBlock(JointTransformerBlock):
    """diffusers' own, operation by operation, without its feed-forward in chunks."""

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, temb: Any, joint_attention_kwargs: Any = None) -> Any:
        x, c, kwargs = hidden_states, encoder_hidden_states, joint_attention_kwargs or {}
        normed, gate, shift, scale, gate_ff, *second = self.norm1(x, emb=temb)
        if self.context_pre_only:
            c_normed, c_others = self.norm1_context(c, temb), []
        else:
            c_normed, *c_others = self.norm1_context(c, emb=temb)
        y, c_y = self.attn(hidden_states=normed, encoder_hidden_states=c_normed, **kwargs)
        x = gated(x, gate, y)
        if second:
            x = gated(x, second[1], self.attn2(hidden_states=second[0], **kwargs))
        x = gated(x, gate_ff, self.ff(modulated(self.norm2(x), scale, shift)))
        if not c_others:
            return None, x
        gate, shift, scale, gate_ff = c_others
        c = gated(c, gate, c_y)
        return gated(c, gate_ff, self.ff_context(modulated(self.norm2_context(c), scale, shift))), x


_FUSED: dict[type, type] = {
    AdaLayerNormZero: _Zero,
    AdaLayerNormZeroSingle: _ZeroSingle,
    SD35AdaLayerNormZeroX: _ZeroDual,
    AdaLayerNormContinuous: _Continuous,
    JointTransformerBlock: _JointBlock,
}
