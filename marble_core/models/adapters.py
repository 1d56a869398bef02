"""A transformer's LoRA layers: which adapter is on, and the float32 weights behind those that the layers compute with."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer


class Adapters:
    """All adapters of one transformer, whose frozen weights have one precision.

    Where it is narrower than float32, the layers hold copies of it and ``weights`` gives the float32 ones, which training changes;
    ``use`` refreshes the copies. A forward then needs no autocast, which would cast every layer's input to float32 and back.
    """

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self._wide: dict[str, dict[str, torch.nn.Parameter]] = {}
        self._found_of: tuple[str, ...] = ()  # the adapters that these are of
        self._layers: list[Any] = []
        self._held: dict[str, dict[str, torch.nn.Parameter]] = {}

    def add(self, lora: Any, name: str) -> None:
        """One more adapter; peft and diffusers give it the frozen weights' precision, which an optimizer's small steps are lost in."""
        self.transformer.add_adapter(lora, name)
        self.transformer.requires_grad_(False)
        self._wide.pop(name, None)
        self._found_of = ()
        held = self.held(name)
        frozen = next(layer.get_base_layer().weight.dtype for layer in self.layers if name in layer.lora_A)
        if (wide := torch.promote_types(frozen, torch.float32)) != frozen:
            self._wide[name] = {n: torch.nn.Parameter(p.to(wide), requires_grad=False) for n, p in held.items()}
            for p in held.values():
                p.data = p.data.to(frozen)  # on the device meta peft has left them float32
            for layer in self.layers:
                layer.forward = partial(_forward, layer)

    def remove(self, name: str) -> None:
        self.transformer.delete_adapters(name)
        self._wide.pop(name, None)

    def weights(self, name: str) -> dict[str, torch.nn.Parameter]:
        """At least float32, by the layer's name; to be changed in place."""
        return dict(self._wide[name]) if name in self._wide else self.held(name)

    def held(self, name: str) -> dict[str, torch.nn.Parameter]:
        """What the layers compute with."""
        self._look()
        return dict(self._held.get(name, {}))

    @property
    def layers(self) -> list[Any]:
        self._look()
        return self._layers

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(getattr(self.transformer, "peft_config", None) or ())

    def use(self, name: str) -> None:
        """This adapter from now on, with its newest weights; ``off``: none. No LoRA weight requires grad.

        Only LoRA layers are touched, by what they read in a forward: diffusers' own switch visits every module, for 15 to 30 ms.
        """
        if name != "off" and name not in self.names:
            raise ValueError(f"no adapter {name!r} is loaded")
        chosen: dict[str, Any] = {"_disable_adapters": True}
        if name != "off":
            chosen = {"_disable_adapters": False, "_active_adapter": [name]}
        for layer in self.layers:
            layer.__dict__.update(chosen)  # a module's own setattr looks for parameters
        for held in self._held.values():
            for weight in held.values():
                weight.requires_grad = False
        self._refresh(name)

    def end(self, name: str) -> None:
        """After ``use``: an adapter is on again, the one before ``off``."""
        for layer in self.layers if name == "off" else ():
            layer.__dict__["_disable_adapters"] = False

    @torch.no_grad()
    def _refresh(self, name: str) -> None:
        """All narrow copies in one kernel: under a thousandth of a forward, so nobody has to tell that weights have changed."""
        if wide := self._wide.get(name):
            torch._foreach_copy_([self._held[name][n] for n in wide], list(wide.values()))

    def _look(self) -> None:
        """Find the layers and their weights, where an adapter has come or gone."""
        if self._found_of == self.names:
            return
        self._found_of = self.names
        self._layers = [m for m in self.transformer.modules() if isinstance(m, LoraLayer)]
        lora = {n: p for n, p in self.transformer.named_parameters() if ".lora_" in n}
        self._held = {
            name: {n.replace(f".{name}.", "."): p for n, p in lora.items() if f".{name}." in n} for name in self.names
        }


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """As peft's own, but the LoRA's share is added by the product that makes it: two kernels and two roundings fewer."""
    result = layer.base_layer(x)
    for name in () if layer.disable_adapters else layer.active_adapters:
        if name in layer.lora_A:
            last = layer.lora_B[name]
            add = getattr(last, "added_to", partial(added, last.weight))
            result = add(layer.lora_A[name](x), result, layer.scaling[name])
    return result


def added(weight_or: torch.Tensor, h: torch.Tensor, result: torch.Tensor, factor: float) -> torch.Tensor:
    """result + factor h weight^T, rounded once."""
    total = torch.addmm(result.flatten(0, -2), h.flatten(0, -2), weight_or.T, alpha=factor)
    return total.view(result.shape)
