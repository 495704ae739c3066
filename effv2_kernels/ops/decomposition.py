"""The ops as Torch's compiler sees them on a GPU: packing by PyTorch's own operators, buffers, kernels.

While torch.compile traces, a block's op is replaced by the launches that its engine would make, as
``torch.library.triton_op`` does it. The compiler then plans their buffers together with its own, and the
calls of the kernels become part of its code. So does the packing of the weights: it is repeated in every call
unless ``torch._inductor.config.freezing`` has it done once.

An op stays what it is, one opaque call of a cached engine: on the CPU, whose engine has no Triton kernels;
for sizes that the graph leaves open, on which plans and tiles depend; in torch.export, whose programs must
not depend on the GPU at hand; where kernels in CUDA C++ may run the block, which the compiler cannot trace;
and where Triton cannot run, which the call itself will say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from effv2_kernels import backends, blocks
from effv2_kernels.ops.engines import block_choice, new_block_engine

if TYPE_CHECKING:
    from effv2_kernels.gpu.engine import Engine
    from effv2_kernels.gpu.launch import FeatureMap


def can_decompose(x: Tensor, values: Sequence[Any], types: Sequence[type]) -> bool:
    """Whether the op of a block is to be replaced by its launches in the graph that is being traced.

    x, values: the op's arguments. types: the kinds of tensors among them.
    """
    from torch.export._trace import custom_triton_ops_decomposition_disabled

    tensors = [x, *(v for v in values if isinstance(v, Tensor))]
    return (
        runs_kernels(x)
        and not custom_triton_ops_decomposition_disabled()
        and all(t is Tensor or issubclass(t, (FakeTensor, FunctionalTensor)) for t in types)
        and all(isinstance(size, int) for t in tensors for size in (*t.shape, *t.stride()))
    )


def runs_kernels(x: Tensor) -> bool:
    """Whether the op launches compiled Triton kernels for an input like x, and nothing else."""
    if not x.is_cuda or x.dtype not in backends.DTYPE_NAMES or backends.interpreted():
        return False
    dtype = backends.DTYPE_NAMES[x.dtype]
    return (
        backends.can_run("triton", dtype=dtype, device=x.device).ok
        and not backends.can_run("cuda", dtype=dtype, device=x.device).ok
    )


def decompose(kind: str, x: Tensor, values: Sequence[Any], build: Callable[[], blocks.Block]) -> Tensor:
    """The block's output for x, by ordinary operators and ``torch.library.wrap_triton``.

    The arguments are those of ``engines.block_engine``; errors are those of a call of the op.
    """
    # Made of tensors of this graph, so it is not kept.
    engine = cast("Engine", new_block_engine(build, block_choice(kind, x, values), x.device))
    x, plan = engine.plan_for(x)
    (output,) = plan.outputs
    memory = {plan.image: x}
    for launch, tile in zip(plan.launches, plan.tiles, strict=True):
        for m in launch.written:
            memory[m] = _empty(m, x.device, logits=m is output and kind == blocks.Head.kind)
        launch.trace(tile, memory)
    return memory[output]


def _empty(m: FeatureMap, device: torch.device, *, logits: bool) -> Tensor:
    """(N, C, H, W) in channels_last, or (N, C)."""
    n, h, w, c = m.images, m.height, m.width, m.channels
    if logits:
        return torch.empty((n, c), dtype=m.dtype, device=device)
    # Inductor ignores the memory format of torch.empty: it would fill the wrong layout with NaN and copy it.
    return torch.empty_strided((n, c, h, w), (h * w * c, 1, w * c, c), dtype=m.dtype, device=device)


def kernels() -> list[object]:
    """What a compiled graph with these ops depends on, as kernels: see ``effv2_kernels.triton.identity``."""
    if backends.interpreted() or not backends.can_run("triton", device=torch.device("cuda")).ok:
        return []
    from effv2_kernels.triton import identity

    return [identity.kernel(torch.device("cuda", torch.cuda.current_device()))]
