"""Checks that test_private_apis.py's rows name: what counts torch's kernels, and what switches peft's layers."""

from typing import Any

import torch
import torch.utils.flop_counter
from torch import nn


def modes() -> None:
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import flop_registry

    seen: list[str] = []

    class Below(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.name())
            if func.overloadpacket in flop_registry:
                assert flop_registry[func.overloadpacket](*args, out_val=func(*args)) == 2 * 2 * 3 * 5
            return func(*args, **(kwargs or {}))

    class Above(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Below(), Above():
        nn.functional.linear(torch.ones(2, 3, device="meta"), torch.ones(5, 3, device="meta"))
    assert "linear" in seen and "aten::mm" in seen
    with Below():
        nn.functional.linear(torch.ones(2, 1, 3, device="meta"), torch.ones(5, 3, device="meta")).to(torch.bfloat16)
    assert "aten::_unsafe_view" in seen and "aten::_to_copy" in seen
    assert tree_leaves(((1, [2]), {"a": 3})) == [1, 2, 3]
    narrow = [torch.zeros(2, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)]
    torch._foreach_copy_(narrow, [torch.ones(2), torch.full((1,), 1.001)])
    assert narrow[0].tolist() == [1, 1] and narrow[1].tolist() == [1]


def complex_views() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    turned = torch.view_as_real(torch.view_as_complex(x) * torch.tensor(1j))
    assert turned.tolist() == [[-1, 1]] * 3
    assert torch.ops.aten._conj(torch.tensor(1j)).is_conj(), "a flag, and the same memory"


def switch() -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    for name in ("a", "b"):
        inject_adapter_in_model(LoraConfig(r=1, target_modules=["0"], init_lora_weights=False), model, name)
    layer = model[0]
    assert isinstance(layer, LoraLayer)
    x, found = torch.randn(2, 3), {}
    for name in ("a", "b"):
        layer._active_adapter = [name]
        found[name] = model(x)
        assert torch.allclose(found[name], x @ (layer.weight + layer.get_delta_weight(name)).T, atol=1e-5)
    layer._disable_adapters = True
    assert torch.equal(model(x), x @ layer.weight.T) and not torch.equal(found["a"], found["b"])
