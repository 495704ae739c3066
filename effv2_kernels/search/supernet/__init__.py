"""A network that holds the weights of all subnets of a space: its layers, its training, its file."""

from effv2_kernels.search.supernet.supernet import Supernet, kept_blocks

__all__ = ["Supernet", "kept_blocks"]
