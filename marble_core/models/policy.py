"""The policy: LoRA adapters ``default`` (trained) and ``old`` (samples), the reference (LoRA off), and the EMA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLora

from marble_core.config.imports import import_class
from marble_core.config.schema import RunConfig
from marble_core.config.training import OptimizerConfig
from marble_core.models import DiffusionModel
from marble_core.models.adapter_file import LowRank, peft_config, read_lora, write_lora
from marble_core.models.adapters import Adapters
from marble_core.models.lora_targets import require_targets
from marble_core.runtime.seeding import derive
from marble_core.types import MarbleError, Rollout


class Policy:
    """A diffusion model and its adapters. ``parameters_of(name)`` are float32 LoRA weights by layer name."""

    def __init__(self, model: DiffusionModel, checkpointing: bool = False) -> None:
        self.model = model
        self.checkpointing = checkpointing
        self.transformer: Any = model.transformer
        self.adapters = Adapters(model.transformer)
        self.ema: dict[str, torch.Tensor] = {}
        self.old_is_default = False
        self._kept: dict[str, torch.Tensor] = {}  # default's weights while the EMA takes their place
        self.base_rollout: Rollout | None = None  # see rollout.beside_base

    @classmethod
    def load(cls, config: RunConfig) -> Policy:
        """The base model without an adapter."""
        family = import_class(config.model.family, "model.family")
        return cls(family(config.model), config.model.gradient_checkpointing)

    def add_trainable(self, config: RunConfig) -> None:
        """Gaussian A, zero B [N]; ``old`` and the EMA start as copies of ``default``."""
        require_targets(self.transformer, self.model.lora_targets)
        torch.manual_seed(derive(config.seed, "lora"))
        self.lora = PeftLora(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            init_lora_weights="gaussian",
            target_modules=list(self.model.lora_targets),
        )
        for name in ("default", "old"):
            self.adapters.add(self.lora, name)
        self.copy("default", "old")
        self.ema = {n: p.detach().clone() for n, p in self.parameters_of("default").items()}
        self.old_is_default = True

    def parameters_of(self, adapter: str) -> dict[str, torch.nn.Parameter]:
        return self.adapters.weights(adapter)

    def layers_of(self, adapter: str) -> dict[str, torch.nn.Linear]:
        """The LoRA's linear layers by the names of their weights in ``parameters_of``."""
        end = f".{adapter}"
        return {
            f"{n.removesuffix(end)}.weight": m
            for n, m in self.transformer.named_modules()
            if n.endswith(end) and isinstance(m, torch.nn.Linear)
        }

    @torch.no_grad()
    def copy(self, source: str, target: str) -> None:
        targets = self.parameters_of(target)
        for name, p in self.parameters_of(source).items():
            targets[name].copy_(p)

    @contextmanager
    def using(self, adapter: str, strength: float = 1.0) -> Iterator[DiffusionModel]:
        """The model under ``default``, ``old``, or ``off`` (the reference). LoRA weights never require grad in here.

        ``strength`` multiplies what the adapter adds to the weights, as the weight of diffusers' ``set_adapters`` does.
        """
        self.adapters.use(adapter)
        if strength != 1:
            self._scale(adapter, strength)
        try:
            yield self.model
        finally:
            if strength != 1:
                self._scale(adapter, 1.0)
            self.adapters.end(adapter)

    def _scale(self, adapter: str, strength: float) -> None:
        for layer in self.adapters.layers:
            layer.set_scale(adapter, strength)

    @contextmanager
    def merged(self, adapter: str) -> Iterator[DiffusionModel]:
        """As ``using``, for many forwards without gradients: the LoRA lies in the frozen weights meanwhile, which are restored bit
        by bit. Weights narrower than float32 would round it away; beside those it stays apart.
        """
        layers = [layer for layer in self.adapters.layers if adapter in layer.lora_A]
        frozen = [layer.get_base_layer().weight for layer in layers]
        if not layers or frozen[0].dtype != torch.promote_types(frozen[0].dtype, torch.float32):
            with self.using(adapter) as model:
                yield model
            return
        before = [weight.data for weight in frozen]
        with self.using("off") as model:
            try:
                for layer, weight in zip(layers, frozen, strict=True):
                    weight.data = weight.data + layer.get_delta_weight(adapter)
                yield model
            finally:
                for weight, data in zip(frozen, before, strict=True):
                    weight.data = data

    @contextmanager
    def averaged(self) -> Iterator[DiffusionModel]:
        """The model under the EMA, which takes the place of ``default`` meanwhile; that is put back as it was, to the bit."""
        default = self.parameters_of("default")
        self._kept = {name: p.data for name, p in default.items()}
        try:
            for name, p in default.items():
                p.data = self.ema[name]
            with self.using("default") as model:
                yield model
        finally:
            self.put_back()

    def put_back(self) -> None:
        """End ``averaged``, for whom a signal's exception took out of it at any place; at other times nothing."""
        default = self.parameters_of("default")
        for name, data in self._kept.items():
            default[name].data = data
        self._kept = {}

    @torch.no_grad()
    def update(
        self, optimizer: torch.optim.Optimizer, gradient: Mapping[str, torch.Tensor], finished: int, config: OptimizerConfig
    ) -> float:
        """One optimizer step along ``gradient``, then ``old`` and the EMA. Returns the gradient's norm before clipping.

        ``finished`` counts the optimizer steps before this one: eta = min(rate * finished, max) [N]. Both releases count this
        one too, in eta and in the EMA's warm-up: they are one step ahead.
        """
        default, old = self.parameters_of("default"), self.parameters_of("old")
        for name, p in default.items():
            p.grad = gradient[name].to(p.dtype)
        norm = torch.nn.utils.clip_grad_norm_(default.values(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        eta = min(config.eta_rate * finished, config.eta_max)
        decay = min(config.ema, (1 + finished) / (10 + finished))
        for name, p in default.items():
            old[name].mul_(eta).add_(p, alpha=1 - eta)
            self.ema[name].mul_(decay).add_(p, alpha=1 - decay)
        self.old_is_default = eta == 0
        return float(norm)

    def save_adapter(self, directory: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """Write ``weights`` as diffusers reads them, with alpha / r folded into lora_B: a reader that does not find alpha, and takes
        alpha = r, applies the same strength. ``begin_from`` undoes it."""
        scale = self.lora.lora_alpha / self.lora.r
        names = [n.removesuffix(".lora_A.weight") for n in weights if n.endswith(".lora_A.weight")]
        layers = {n: LowRank(weights[f"{n}.lora_A.weight"], weights[f"{n}.lora_B.weight"] * scale) for n in names}
        write_lora(layers, Path(directory), targets=self.model.lora_targets)

    def read_adapter(self, place: Path, rank: int | None = None) -> dict[str, LowRank]:
        """A LoRA of this model, whoever made it. Raises MarbleError where it is none, or not of this ``rank``."""
        convert = getattr(type(getattr(self.model, "pipeline", None)), "lora_state_dict", None)
        return read_lora(place, self.transformer, rank, convert)

    @torch.no_grad()
    def load_adapter(self, place: Path, rank: int | None = None, name: str = "default") -> None:
        """Load a LoRA as the adapter ``name``, at strength 1. Raises MarbleError where it is none of this model's, or not of this
        ``rank``."""
        layers = self.read_adapter(place, rank)
        self.adapters.add(peft_config(layers), name)
        for key, p in self.parameters_of(name).items():
            layer, _, part = key.rpartition(".lora_")
            p.copy_(layers[layer].A_ri if part == "A.weight" else layers[layer].B_or)

    @torch.no_grad()
    def begin_from(self, layers: Mapping[str, LowRank], where: object) -> None:
        """``default``, ``old`` and the EMA become this LoRA, at the scale lora.alpha / lora.rank that is trained at.

        A layer of a smaller rank, or without a LoRA, keeps what it began with in the rest: Gaussian A, zero B. Raises MarbleError
        for a rank above lora.rank, and for a layer that is not trained here.
        """
        rank, default = self.lora.r, self.parameters_of("default")
        if odd := sorted(layers.keys() - {name.rpartition(".lora_")[0] for name in default}):
            raise MarbleError(f"The LoRA {where} has {len(odd)} layers that model.family does not train, such as {odd[0]}.")
        if (largest := max(layer.rank for layer in layers.values())) > rank:
            raise MarbleError(f"The LoRA {where} has rank {largest}, but lora.rank is {rank}: set lora.rank={largest}.")
        for name, layer in layers.items():
            default[f"{name}.lora_A.weight"][: layer.rank] = layer.A_ri
            default[f"{name}.lora_B.weight"].zero_()[:, : layer.rank] = layer.B_or / (self.lora.lora_alpha / rank)
        self.copy("default", "old")
        self.ema = {n: p.detach().clone() for n, p in default.items()}
        self.old_is_default = True
