"""``torch.ops.effv2.network(x, weights, structure, backend, dtype, isa, threads, cuda_graph)``.

A whole network in one call: this is how an optimised model appears in a graph of torch.compile or
torch.export. It stays one node there, on a GPU as well and other than the ops of single blocks: behind it is
an engine that packs the weights once and replays its launches as a CUDA graph, on memory planned for the
whole network, for any batch. Shown as kernels, a graph would pack the weights in every call and hold for one
size of the images, while between the kernels nothing is left to fuse.

x: (N, C, H, W) of the dtype, any strides. weights: the tensors that ``structure`` names, in its order,
float32 and where x is. structure: JSON, see ``effv2_kernels.structure``. backend, dtype, cuda_graph: see
``effv2_kernels.backends.Settings``. isa: "" for the default of the machine that runs it. threads: 0 for
``torch.get_num_threads()`` at the time of the call. Returns the list of feature maps (N, C, H, W) of the
dtype, channels_last, or of one tensor of logits (N, classes).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from effv2_kernels.backends import TORCH_DTYPES, Settings
from effv2_kernels.declaration import block_sizes
from effv2_kernels.inputs import check_input
from effv2_kernels.ops.registration import define, empty_map, output_size
from effv2_kernels.ops.routes import refuse_exporters
from effv2_kernels.structure import parse


def run(
    x: Tensor,
    weights: list[Tensor],
    structure: str,
    backend: str,
    dtype: str,
    isa: str,
    threads: int,
    cuda_graph: bool,
) -> list[Tensor]:
    from effv2_kernels.ops.engines import network_engine

    settings = Settings(backend, dtype, isa or None, threads or None, cuda_graph)
    return network_engine(weights, parse(structure), settings).run(x, threads or None)


def fake(x: Tensor, weights: list[Tensor], structure: str, backend: str, dtype: str, *_: Any) -> list[Tensor]:
    # What Dynamo traces comes by here alone.
    refuse_exporters()
    network = parse(structure).rebuild(weights)
    expected = TORCH_DTYPES[dtype]
    torch._check(x.dtype == expected, lambda: f"expected images of {expected}, got {x.dtype}")
    channels = block_sizes(network.blocks[0])["in"]
    torch._check(x.ndim == 4, lambda: f"expected images of rank 4, got {tuple(x.shape)}")
    torch._check(x.shape[1] == channels, lambda: f"expected {channels} channels, got {x.shape[1]}")
    outputs = []
    size: tuple[Any, Any] | None = (x.shape[2], x.shape[3])
    for block in network.blocks:
        assert size is not None  # a head is the last block
        size = output_size(block, size)
        outputs.append((block_sizes(block)["out"], size))
    wanted = [f.block for f in network.features] or [len(outputs) - 1]
    return [empty_map(x, *outputs[i]) for i in wanted]


def reference(
    x: Tensor, weights: list[Tensor], structure: str, backend: str, dtype: str, *_: Any
) -> list[Tensor]:
    """The outputs by PyTorch's own operations, in the precision of the images; raises as an engine does."""
    from effv2_kernels.reference import run as run_reference

    network = parse(structure).rebuild(weights)
    check_input(x, block_sizes(network.blocks[0])["in"], TORCH_DTYPES[dtype], weights[0].device)
    with torch.autocast(x.device.type, enabled=False):
        y = run_reference(network, x)
    return [y] if isinstance(y, Tensor) else y


define(
    "network(Tensor x, Tensor[] weights, str structure, str backend, str dtype, str isa, int threads, "
    "bool cuda_graph) -> Tensor[]",
    run,
    fake,
    reference,
)
