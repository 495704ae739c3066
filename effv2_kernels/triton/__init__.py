"""The blocks on NVIDIA GPUs as fused Triton kernels, one file per block.

``tiles`` holds what kernels are made of, ``product`` the matrix product that most launches are. Each block's
file packs its weights and plans its launches (``launch``) for one size of the input; ``kernels`` says what
blocks there are, and is all that ``effv2_kernels.gpu`` asks for. ``ranking`` puts tiles in order, ``tuned``
has those that were measured, and ``ahead`` compiles kernels for GPUs that are not there.

Needs Triton; the rest of the package imports this folder only for a model on a GPU.
"""
