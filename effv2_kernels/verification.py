"""Run a model and what was read of it once, on a random image, before the one takes the other's place.

A structure does not say what a ``forward`` does with it. So each network is run twice: as it is, against
the engine; and with weights that hide nothing (``sources.clone``), against the blocks read from these.
Nothing of this reaches the model: clones keep its caches and the counts of its hooks apart, and the random
numbers come from a generator of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from math import isnan
from typing import Any

import torch
from torch import Tensor, nn

from effv2_kernels import blocks, memory, sources
from effv2_kernels.backends import TORCH_DTYPES
from effv2_kernels.bounds import HALF_NETWORK
from effv2_kernels.declaration import block_sizes
from effv2_kernels.errors import ModelError
from effv2_kernels.inputs import fitting_sizes
from effv2_kernels.model import OptimizedModel
from effv2_kernels.reference import run, run_block
from effv2_kernels.sources.clone import Clone, refresh, scramble

_BOUND = 1e-4  # relative L2 of each output
_COARSE_BOUND = HALF_NETWORK  # where the model, the result or the GPU computes in half precision or TF32
_SEED = 20221216
_NOTE = "_left_by_effv2_kernels"

# Rows and columns to try where the attention biases fit any: of images, and of the maps that parts take.
_ANY_IMAGE = ((64, 96), (64, 64), (224, 224))
_ANY_MAP = ((8, 12), (8, 8), (14, 14), (7, 7))

_ADVICE = (
    "Give the model as its authors wrote it, or leave it in PyTorch. verify=False leaves this check out, for "
    "who knows better."
)


class _Differs(Exception):
    """Two outputs are not the same; the message says how."""


def verify(module: nn.Module, optimised: OptimizedModel, *, path: str = "", part: bool = False) -> float:
    """The relative error of ``optimised`` against the module that it was made of, on one random image.

    It is the largest one of all outputs: the L2 norm of the difference over that of the output. The module
    runs in its own dtype and on its own device; where the result would run on a GPU, its blocks run in
    ``effv2_kernels.reference`` there, so that nothing is compiled for this. path: for messages. part: the
    module is a part of a network (``sources.read_part``).

    Raises ModelError where the module cannot run, returns something else than a tensor or a list of feature
    maps, or differs by more than 1e-4 (2e-2 where anything is in half precision, or in TF32 on a GPU).
    """
    where = f"'{path}' ({type(module).__name__})" if path else type(module).__name__
    device = optimised.network.blocks[0].tensors().popitem()[1].device
    check = _Check(module, optimised, device, part, where)
    # A default device, like every such mode, slows all operations down: one is set only against another.
    modes = getattr(torch._C, "_len_torch_function_stack", lambda: 1)()
    with (
        torch.no_grad(),
        torch.device(device) if modes else nullcontext(),
        torch.autocast(device.type, enabled=False),
    ):
        return check.as_it_is(check.scrambled())


def note(result: nn.Module, left: dict[str, str]) -> None:
    """Keep in a module why ``verify`` left parts of it in PyTorch, by dotted path."""
    result.__dict__[_NOTE] = dict(left)


def noted(module: nn.Module) -> dict[str, str]:
    """What ``note`` kept."""
    kept: dict[str, str] = module.__dict__.get(_NOTE, {})
    return kept


class _Check:
    def __init__(
        self, module: nn.Module, optimised: OptimizedModel, device: torch.device, part: bool, where: str
    ) -> None:
        self._module, self._optimised, self._device = module, optimised, device
        self._part, self._where = part, where
        self._network = optimised.network
        self._generator = torch.Generator(device="cpu").manual_seed(_SEED)
        own = {t.dtype: 1 for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()}
        # A model of several dtypes, which mostly cannot run as it is, is run in float32.
        self._own = next(iter(own)) if len(own) == 1 else torch.float32
        self._mixed = len(own) > 1
        self._made_for = TORCH_DTYPES[optimised.choice.dtype]

    def scrambled(self) -> Tensor:
        """Whether the blocks are what the module computes, whatever its weights; the image that it ran on."""
        # In float64 on a GPU, where float32 may mean TF32.
        dtype = torch.float32 if self._device.type == "cpu" else torch.float64
        error: _Differs | None = None
        for precision in dict.fromkeys((dtype, torch.float64)):
            with Clone(self._module) as clone:
                self._prepare(clone, precision)
                image, expected = self._first_run(clone, precision)
                try:
                    network = self._read(clone)
                except ModelError as unread:
                    raise ModelError(
                        f"{self._where} cannot be checked, since with other weights it is no longer read: "
                        f"{unread} {_ADVICE}"
                    ) from unread
                try:
                    _compare(expected, self._run(network, image), dtype=precision, bound=_BOUND)
                    return image
                except _Differs as differs:
                    # Once more in float64: weights can be such that rounding errors grow this large.
                    error = differs
        raise self._refused(str(error), self._place())

    def as_it_is(self, image: Tensor) -> float:
        """The error of what was optimised; ``image``: one of a size that the module takes."""
        half = {torch.float16, torch.bfloat16} & {self._own, self._made_for}
        bound = _COARSE_BOUND if half or _allows_tf32(self._device) else _BOUND
        with Clone(self._module) as clone:
            if self._mixed:
                self._prepare(clone, self._own, random=False)
            expected = self._call(clone, image.to(self._own))
        found: Any
        if self._optimised.choice.backend == "cpu":
            engine = self._optimised.engine
            outputs = engine.run(image.to(self._made_for), self._optimised.threads)
            engine.forget()  # explain() shows the size of the user's last call, which this is not
            found = outputs[0] if self._part or self._network.features == () else outputs
        else:
            found = self._run(self._network, image.to(self._made_for))
        try:
            return _compare(expected, found, dtype=self._own, bound=bound)
        except _Differs as differs:
            with Clone(self._module) as clone:
                self._prepare(clone, torch.float64, random=False)
                exact = self._call(clone, image.double())
            # Rounding errors may be this large, and then they are in both.
            error = _distance(exact, found)
            if error <= 4 * _distance(exact, expected):
                return error
            raise self._refused(str(differs), "") from differs

    def _prepare(self, clone: nn.Module, dtype: torch.dtype, *, random: bool = True) -> None:
        try:
            if random:
                scramble(clone, self._generator)
            refresh(clone, dtype)
        except Exception as error:
            if memory.lacks(error):
                raise
            raise ModelError(
                f"{self._where} cannot be checked, since a copy raised {type(error).__name__}: {error} "
                f"{_ADVICE}"
            ) from error

    def _read(self, clone: nn.Module) -> blocks.Network:
        if not self._part:
            return sources.read(clone, checked=True)
        steps = sources.read_part(clone, checked=True)
        assert steps is not None
        return blocks.Network(steps, ("",) * len(steps), (blocks.Feature(len(steps) - 1),))

    def _run(self, network: blocks.Network, image: Tensor) -> Any:
        outputs = run(network, image)
        return outputs[0] if self._part else outputs

    def _first_run(self, clone: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Any]:
        """An image of the first size that the module takes, and its output."""
        first, *others = self._sizes()
        error: ModelError | None = None
        for size in (first, *others):
            channels = block_sizes(self._network.blocks[0])["in"]
            image = torch.randn(
                1, channels, *size, generator=self._generator, dtype=torch.float32, device="cpu"
            )
            image = image.to(self._device, dtype)
            try:
                return image, self._call(clone, image)
            except ModelError as failed:
                error = error or failed
        assert error is not None
        raise error

    def _sizes(self) -> list[tuple[int, int]]:
        fitting = fitting_sizes(self._network)
        if fitting is None:
            reads_images = not self._part or isinstance(self._network.blocks[0], blocks.Stem)
            return list(_ANY_IMAGE if reads_images else _ANY_MAP)
        (least, most), (cols_least, cols_most) = fitting.rows, fitting.columns
        rounded = max(least, most // 32 * 32), max(cols_least, cols_most // 32 * 32)
        return list(dict.fromkeys([(most, cols_most), rounded, (least, cols_least)]))

    def _call(self, clone: nn.Module, image: Tensor) -> Any:
        try:
            return clone(image)
        except Exception as error:
            if memory.lacks(error):
                raise
            raise ModelError(
                f"{self._where} cannot run on a random image of {tuple(image.shape)}, {image.dtype}: "
                f"{type(error).__name__}: {error} Such a run shows that the optimised model computes the "
                f"same; verify=False leaves it out."
            ) from error

    def _refused(self, reason: str, place: str) -> ModelError:
        return ModelError(
            f"{self._where} does not compute what its structure says, so its forward is another one: on a "
            f"random image {reason}.{place} {_ADVICE}"
        )

    def _place(self) -> str:
        """The first part whose output is not that of its blocks."""
        if self._part:
            return ""
        seen: dict[str, str] = {}
        clone = Clone(self._module)
        with clone as root:
            self._prepare(root, torch.float64)
            self._first_run(root, torch.float64)
            parts = sources.read_parts(root)
            for name, steps in parts.items():
                clone.watch(name, partial(_watched, name, steps, seen))
            self._first_run(root, torch.float64)
        for name in parts:
            if name not in seen:
                return f" It does not call '{name}'."
        first = next((name for name, reason in seen.items() if reason), None)
        if first is None:
            return " Each of its blocks computes what it should: look at what is done with their outputs."
        kind = type(self._module.get_submodule(first)).__name__
        return f" The first part that differs is '{first}' ({kind}): {seen[first]}."


def _watched(
    name: str, steps: tuple[blocks.Block, ...], seen: dict[str, str], forward: Callable[..., Any]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        try:
            y = args[0]
            for block in steps:
                y = run_block(block, y)
            _compare(output, y, dtype=y.dtype, bound=_BOUND)
            seen.setdefault(name, "")
        except Exception as error:
            seen.setdefault(name, str(error))
        return output

    return call


def _compare(expected: Any, found: Any, *, dtype: torch.dtype, bound: float) -> float:
    """The largest error of the outputs; _Differs where it is too large or the outputs are not alike."""
    if isinstance(found, Tensor):
        if not isinstance(expected, Tensor):
            raise _Differs(f"it returns a {_shown(expected)} where a tensor was expected")
    elif type(expected) is not list or not all(isinstance(y, Tensor) for y in expected):
        raise _Differs(
            f"it returns a {_shown(expected)} where a list of {len(found)} feature maps was expected"
        )
    outputs, others = _tensors(expected), _tensors(found)
    if len(outputs) != len(others):
        raise _Differs(f"it returns {len(outputs)} feature maps where {len(others)} were expected")
    for y, other in zip(outputs, others, strict=True):
        if y.shape != other.shape:
            raise _Differs(f"it returns {tuple(y.shape)} where {tuple(other.shape)} was expected")
        if y.dtype != dtype:
            raise _Differs(f"it returns {y.dtype} for an image of {dtype}")
    error = _distance(expected, found)
    if not error <= bound:
        raise _Differs(f"the relative error is {error:.1e}, and at most {bound:g} is due to rounding")
    return error


def _distance(expected: Any, found: Any) -> float:
    """The largest relative L2 distance of the outputs, over the elements that are finite in ``expected``."""
    worst = 0.0
    for y, other in zip(_tensors(expected), _tensors(found), strict=True):
        y, other = y.double(), other.double()
        finite = y.isfinite()
        if not bool(finite.all()):
            y, other = y[finite], other[finite]
        size, distance = float(y.norm()), float((other - y).norm())
        error = 0.0 if distance == 0 else distance / size if size else float("inf")
        worst = float("inf") if isnan(error) else max(worst, error)
    return worst


def _tensors(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _shown(outputs: Any) -> str:
    name = type(outputs).__name__
    return f"{name} of {len(outputs)}" if isinstance(outputs, (tuple, list, dict)) else name


def _allows_tf32(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    try:
        return bool(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    except RuntimeError:  # newer settings are in use, which the old names cannot tell
        return True
