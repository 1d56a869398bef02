"""What lies on the device in which phase of a step, and what waits in the host's memory (``model.offload``).

    phase       transformer, LoRA, VAE   text encoders   scorers
    encoding    on the device            on the device   wait
    sampling    on the device            wait            wait
    decoding    on the device            wait            wait
    scoring     on the device            wait            on the device, one after another
    training    on the device            wait            wait

``encoders`` and ``scorers`` say which of the two wait; what does not is always on the device. Where the device is the CPU
there is nothing to be moved, and only the account is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from types import TracebackType
from weakref import WeakKeyDictionary

import torch

HOST = torch.device("cpu")
_HOMES: WeakKeyDictionary[torch.nn.Module, torch.device] = WeakKeyDictionary()  # several scorers may share a module


class Offloaded:
    """Torch modules that compute on the device they were loaded on. Those that wait are there within ``with`` only."""

    def __init__(self, modules: Iterable[torch.nn.Module], waits: bool) -> None:
        self.modules, self.waits = tuple(modules), waits
        for module in self.modules:
            _HOMES.setdefault(module, next(iter(_tensors(module)), torch.empty(0)).device)
        self._leave()

    def __enter__(self) -> None:
        self.is_here = True
        if self.waits:
            for module in self.modules:
                module.to(_HOMES[module])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave()

    def _leave(self) -> None:
        self.is_here = not self.waits
        if self.waits:
            for module in self.modules:
                module.to(HOST)
            if any(_HOMES[module].type == "cuda" for module in self.modules):
                torch.cuda.empty_cache()  # the next phase asks for other sizes

    def tensors(self) -> Iterable[torch.Tensor]:
        """Those that take the device's memory now."""
        return chain.from_iterable(_tensors(module) for module in self.modules if self.is_here)


def resident_bytes(parts: Mapping[str, Iterable[Offloaded]], device: torch.device) -> dict[str, int]:
    """Bytes of weights and buffers on ``device`` by part; what several parts share counts for the first."""
    counted: set[int] = set()
    found = {}
    for name, residents in parts.items():
        tensors = chain.from_iterable(resident.tensors() for resident in residents)
        here = {id(t): t.nbytes for t in tensors if t.device == device and id(t) not in counted}
        counted |= here.keys()
        found[name] = sum(here.values())
    return found


def _tensors(module: torch.nn.Module) -> Iterable[torch.Tensor]:
    return chain(module.parameters(), module.buffers())
