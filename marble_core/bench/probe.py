"""One micro-batch on a transformer with random weights, part by part, under any meter: FLOP counter or clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch

from marble_core.algorithm.row_gradients import Pass, RowGradients
from marble_core.bench.costs import Parts
from marble_core.bench.shapes import Shape
from marble_core.config.loading import load_config
from marble_core.models import DiffusionModel
from marble_core.models.lean import lighten
from marble_core.models.policy import Policy
from marble_core.models.sd3 import SD3
from marble_core.types import Conditioning

T = TypeVar("T")
N = TypeVar("N")
N_co = TypeVar("N_co", covariant=True)


class Meter(Protocol[N_co]):
    def __call__(self, work: Callable[[], T]) -> tuple[N_co, T]:
        """The cost of ``work``, and what it returned."""


class Bare(SD3):
    """A transformer and nothing else of SD3. ``published``: as diffusers has it, for latents in float32, as releases run it under
    autocast."""

    def __init__(self, transformer: Any, dtype: torch.dtype, published: bool) -> None:
        self.transformer, self.dtype = transformer, torch.float32 if published else dtype
        if not published:
            lighten(transformer, dtype)


class Probe:
    """A shape's transformer with its LoRA. On the device ``meta`` it has no numbers and needs no memory.

    ``published`` is what it is compared with: diffusers' transformer as it is and a float32 LoRA, to be run under autocast.
    """

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype = torch.float32, published: bool = False) -> None:
        from diffusers import SD3Transformer2DModel

        torch.manual_seed(0)
        channels, side = shape.transformer["in_channels"], shape.side
        config = load_config("demo", overrides=[f"lora.rank={shape.rank}"])
        with torch.device(device):
            transformer: Any = SD3Transformer2DModel(**shape.transformer)
            transformer.requires_grad_(False).to(device, dtype)
            self.policy = Policy(cast(DiffusionModel, Bare(transformer, dtype, published)))
            self.policy.add_trainable(config)
            for name in ("default", "old") if published else ():
                for p in self.policy.adapters.held(name).values():
                    p.data = p.data.float()
            for layer in self.policy.adapters.layers if published else ():
                del layer.forward  # peft's own again
            size = (shape.images, channels, shape.height or side, side)
            self.x_BCHW = torch.randn(size)
            self.tokens = torch.randn(shape.images, shape.text_tokens, shape.transformer["joint_attention_dim"], dtype=dtype)
            self.pooled = torch.randn(shape.images, shape.transformer["pooled_projection_dim"], dtype=dtype)
            self.t_B = torch.rand(shape.images)
            self.q_BCHW = torch.randn(size)
        self._gradients: dict[int, RowGradients] = {}

    @property
    def layers(self) -> int:
        """LoRA layers, of two matrices each."""
        return len(self.policy.layers_of("default")) // 2

    @property
    def lora_size(self) -> int:
        """Weights of one LoRA."""
        return sum(p.numel() for p in self.policy.parameters_of("default").values())

    def parts(self, rows: Sequence[int], meter: Meter[N], jacobians: Sequence[int] = ()) -> Parts[N]:
        """Every part once, one after the other."""
        with torch.no_grad():
            forward, _ = meter(lambda: self._velocity("default"))
            reference, _ = meter(lambda: self._velocity("off"))
        taped, v_BCHW = meter(self._taped)
        plain, _ = meter(lambda: self._plain_backward(v_BCHW))
        by_rows = {R: self._row_backward(R, meter) for R in rows}
        return Parts(forward, reference, taped, plain, by_rows, {K: self._jacobian(K, meter) for K in jacobians})

    def plain(self) -> None:
        """A forward and the ordinary backward of one micro-batch."""
        self._plain_backward(self._taped())

    def exact(self, rows: int) -> None:
        """A forward and two passes of ``RowGradients`` of one micro-batch."""
        self._row_backward(rows, _unmetered, passes=2)

    def _row_backward(self, rows: int, meter: Meter[N], passes: int = 1) -> N:
        """Accumulators live as long as the probe: a step allocates them once, not once a micro-batch."""
        if rows not in self._gradients:
            self._gradients[rows] = RowGradients(self.policy.layers_of("default"), rows)
        gradients = self._gradients[rows]
        weights_JB = torch.ones(rows, len(self.q_BCHW))
        planned = [Pass(self.q_BCHW, weights_JB) for _ in range(passes)]
        with gradients.capturing():
            _, v_BCHW = meter(lambda: self._velocity("default"))
            return meter(lambda: gradients.backward(v_BCHW, planned))[0]

    def _jacobian(self, K: int, meter: Meter[N]) -> N:
        from torchjd.autojac import jac

        v_BCHW, parameters = self._taped(), list(self.policy.adapters.held("default").values())
        cotangents = torch.stack([self.q_BCHW * (k + 1) for k in range(K)])
        work = lambda: jac(v_BCHW, parameters, jac_outputs=cotangents, parallel_chunk_size=1)
        seconds, _ = meter(work)
        self.policy.transformer.requires_grad_(False)
        return seconds

    def _taped(self) -> torch.Tensor:
        parameters = self.policy.adapters.held("default").values()
        with self.policy.using("default"):
            for p in parameters:
                p.requires_grad_(True)
            return self._call()

    def _plain_backward(self, v_BCHW: torch.Tensor) -> None:
        parameters = list(self.policy.adapters.held("default").values())
        torch.autograd.grad(v_BCHW, parameters, self.q_BCHW, allow_unused=True)
        self.policy.transformer.requires_grad_(False)

    def _velocity(self, adapter: str) -> torch.Tensor:
        with self.policy.using(adapter):
            return self._call()

    def _call(self) -> torch.Tensor:
        return self.policy.model.velocity(self.x_BCHW, self.t_B, Conditioning(self.tokens, self.pooled))


def _unmetered(work: Callable[[], T]) -> tuple[float, T]:
    return 0.0, work()
