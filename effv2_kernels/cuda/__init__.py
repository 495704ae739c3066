"""Kernels in CUDA C++ (``csrc/cuda``), one file per block here as there: how each is packed and launched."""
