"""Triton's interpreter without what it does over and over: the same bits in a third of the time.

It runs a kernel program by program, in Python. Most of its time goes into patching Triton's language again at
each call of a function inside of a kernel, into types and shapes of values, of which there are few, and into
finding out whether integers overflow, of which nobody is told (``device_assert`` does nothing without debug).
"""

import contextlib
import dataclasses
import functools
import inspect
import math

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


class _LanguageOnce:
    """In place of ``_patch_lang``: once per launch, which restores the language at its end."""

    def __init__(self):
        self._patch = interpreter._patch_lang
        self._launch, self._patched = interpreter._LangPatchScope(), frozenset()

    @functools.cache  # noqa: B019  (there is one, for as long as the process lives)
    def _languages(self, fn):
        return frozenset(id(v) for v in fn.__globals__.values() if inspect.ismodule(v) and v in (tl, tl.core))

    def __call__(self, fn):
        languages = self._languages(fn)
        if not self._launch._changes:  # they are empty before a launch and after it
            self._launch, self._patched = self._patch(fn), languages
            return self._launch
        if not languages <= self._patched:
            self._patch(fn)
            self._patched |= languages
        return interpreter._LangPatchScope()


def _array_types():
    """In place of ``_get_np_dtype``, which makes a table at each call."""
    of_scalar = functools.cache(interpreter._get_np_dtype)

    def array_type(type_):
        scalar = type_.scalar
        return np.dtype(np.uint64) if isinstance(scalar, tl.pointer_type) else of_scalar(scalar)

    return array_type


@functools.cache
def _shape_of_tensors(shape):
    return tl.tuple([tl.constexpr(size) for size in shape]), tl.constexpr(math.prod(shape))


def _make_tensor(tensor, handle, type):
    """In place of ``tensor.__init__``."""
    tensor.handle, tensor.type, tensor.dtype = handle, type, type.scalar
    tensor.shape, tensor.numel = _shape_of_tensors(type.shape if type.is_block() else ())


def _options(**changes):
    return dataclasses.replace(interpreter.interpreter_builder.options, **changes)


_ORIGINAL = (interpreter._patch_lang, interpreter._get_np_dtype, tl.core.tensor.__init__, _options())
_QUICK = (_LanguageOnce(), _array_types(), _make_tensor, _options(sanitize_overflow=False))


def _use(patch_lang, array_type, make_tensor, options):
    interpreter._patch_lang = patch_lang
    interpreter._get_np_dtype = array_type
    tl.core.tensor.__init__ = make_tensor
    interpreter.interpreter_builder.options = options


def install():
    """For the rest of this process."""
    _use(*_QUICK)


@contextlib.contextmanager
def plain():
    """Within, the interpreter is as Triton has it."""
    _use(*_ORIGINAL)
    try:
        yield
    finally:
        install()
