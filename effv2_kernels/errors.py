"""The exceptions of this package. Every one says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

_MOST_SHOWN = 300  # characters of another's message


class Effv2Error(Exception):
    """Base of every error that effv2_kernels raises on purpose."""


class ModelError(Effv2Error):
    """A module cannot be optimised: it is unknown, in training mode, or holds unusable weights."""


class CheckpointError(Effv2Error):
    """A weight file is missing, truncated, not a checkpoint, or does not fit the model.

    fits: what the file would fit with, by the names of options of ``create_model``; empty where that is not
    known, or where the file fits no model.
    """

    def __init__(self, message: str = "", fits: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.fits = dict(fits or {})


class InputError(Effv2Error, ValueError):
    """A tensor given to an op or a model has a wrong rank, size, dtype or device."""


class ResolutionError(InputError):
    """The attention bias of the model does not fit the resolution of the input."""


class UnknownNameError(Effv2Error, ValueError):
    """A model, dtype, backend or ISA was asked for by a name that does not exist."""

    @classmethod
    def of(cls, what: str, given: object, known: Iterable[str]) -> UnknownNameError:
        """Build the message for ``given``, naming the nearest of the ``known`` names."""
        names = list(known)
        near = difflib.get_close_matches(str(given), names, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        return cls(f"unknown {what} {given!r}.{hint} Known: {', '.join(names)}.")


class UnavailableError(Effv2Error, RuntimeError):
    """Something known cannot run here: a backend, an ISA, a dtype or a device, or for want of memory."""


class TrainingError(Effv2Error, RuntimeError):
    """A run of training cannot begin, go on or be kept; the last good checkpoint stays."""


class SearchError(Effv2Error):
    """A search cannot begin, or go on: its budgets, its tables, its files or its options do not fit."""


class LatencyError(Effv2Error):
    """A latency table cannot be read or written, lacks blocks of a network, or is of another device."""


class ExportError(UnavailableError):
    """An optimised model was given to an exporter or a compiler that cannot take it."""


class MissingAttributeError(ModelError, AttributeError):
    """An optimised model has no attribute of this name, though the model that it was made from may have."""


def reason(error: BaseException, lines: int = 1) -> str:
    """What an error of others says, as a clause of a message: its first lines, at some length.

    PyTorch's of a state dict has every key in a line. Where it says nothing, the name of its type.
    """
    said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(said[:lines])
    return f"{text[:_MOST_SHOWN]}..." if len(text) > _MOST_SHOWN else text.rstrip(".")
