"""The blocks as ``torch.ops.effv2.<kind>``: schema, kernel, fake kernel, autograd. Importing registers them.

``torch.ops.effv2.ffn(x, fc1_weight, fc1_bias, dw_weight, dw_bias, fc2_weight, fc2_bias)`` and so on: the
arguments are the tensors and options of the block (``effv2_kernels.blocks``) in declared order, with their
defaults.
x: (N, channels, H, W), any strides; float32, on a GPU float16 and bfloat16 as well. The weights are float32
and where x is. Returns (N, out, ceil(H / step), ceil(W / step)) in channels_last, of a head (N, classes), in
the dtype of x. Raises InputError where x or a field does not fit, ResolutionError where an attention's bias
does not fit the map and ``resize_bias`` is False.

On the CPU they compute in float32; on a GPU in the precision of x, to which matrices are converted when they
are packed. In graphs of torch.compile for a GPU they are seen as the Triton kernels that they launch
(``decomposition``). The op of a whole network is not, see ``network``.
"""

from effv2_kernels.blocks import BLOCK_TYPES, EARLIER_KINDS
from effv2_kernels.ops import network
from effv2_kernels.ops.registration import register, register_earlier

for _block_type in BLOCK_TYPES.values():
    register(_block_type)
for _kind, _now in EARLIER_KINDS.items():
    register_earlier(_kind, _now)

__all__ = ["network"]
