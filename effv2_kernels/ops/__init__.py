"""The blocks as ``torch.ops.effv2.*``: schema, kernel, fake kernel, autograd. Importing registers them."""

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
