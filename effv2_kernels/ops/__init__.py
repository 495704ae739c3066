"""The blocks as ``torch.ops.effv2.*``: schema, kernel, fake kernel, autograd. Importing registers them.

On the CPU they compute in float32; on a GPU in the precision of x, to which matrices are converted when they
are packed. In graphs of torch.compile for a GPU they are seen as the Triton kernels that they launch
(``decomposition``). The op of a whole network is not, see ``network``.
"""

from effv2_kernels.ops import (
    attention,
    attention_downsample,
    conv_downsample,
    ffn,
    head,
    network,
    stem,
)

__all__ = ["attention", "attention_downsample", "conv_downsample", "ffn", "head", "network", "stem"]
