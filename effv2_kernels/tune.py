"""Measure on the user's own GPU which kernels are the fastest, and in which tiles."""

from __future__ import annotations

from torch import Tensor, nn

from effv2_kernels.errors import UnavailableError
from effv2_kernels.explain import optimised_parts
from effv2_kernels.model import OptimizedModel
from effv2_kernels.progress import progress_bar


def tune(model: nn.Module, images: Tensor) -> None:
    """Time all that can be chosen for images of this shape, and use the fastest from now on.

    That is every tile of every kernel; of each block the kernels of Triton and those in CUDA C++, where the
    latter can run and pass their check; and for few images the network in one launch. Takes some minutes,
    most of them to compile, and shows a progress bar where rich is installed. What was found is kept in the
    folder EFFV2_CACHE_DIR, ``~/.cache/effv2_kernels`` by default, for every later model with kernels of the
    same sizes on a GPU of the same name, in every process; what is known is not measured again. Without
    tuning, each kernel takes its first tile that fits, and "auto" runs Triton's.

    model: what ``optimize`` or ``load`` returned, on a GPU. images: (N, C, H, W) as the model takes them; the
    best tiles depend on their number and size.

    Raises UnavailableError for a model on the CPU or a GPU without enough memory, after which the model can
    be used as before, ModelError for a module that was not optimised, and InputError for images that the
    model does not take.
    """
    if not isinstance(model, OptimizedModel):
        inside = ", ".join(map(repr, optimised_parts(model)))
        raise UnavailableError(
            f"tune() takes an optimised network; of a larger module, give the one at {inside}, with the "
            f"images that it gets there."
        )
    with progress_bar() as progress:
        model.engine.tune(images, progress)
