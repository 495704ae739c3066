"""The blocks on NVIDIA GPUs as fused Triton kernels, one file per block.

``tiles`` holds what kernels are made of, ``product`` the matrix product that most launches are. Each block's
file packs its weights and plans its launches (``launch``) for one size of the input; ``plan`` does so for a
whole network. ``ahead`` compiles kernels for GPUs that are not there.

Not imported by the rest of the package yet: it needs Triton.
"""
