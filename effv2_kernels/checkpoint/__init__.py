"""Read weight files: which kind a file is, which of the networks in it is taken, and whether it fits a model.

``files`` reads them, and executes nothing that is in them; ``choice`` takes one of the networks in a file,
such as the average of the weights. What keys a network has, its family says (``effv2_kernels.families``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from effv2_kernels.checkpoint import choice as choices
from effv2_kernels.checkpoint import files
from effv2_kernels.checkpoint.choice import Keys, listed
from effv2_kernels.errors import CheckpointError, UnknownNameError, reason

_log = logging.getLogger(__name__)


def read(path: str | os.PathLike[str], weights: str, keys: Keys) -> tuple[str, dict[str, Tensor]]:
    """What to call a file in messages, and the tensors of a network in it; weights: as in ``create_model``.

    Where the file holds an average of the weights, a line in the log says what was taken: a warning if raw
    weights are there as well and nobody chose, so that it is seen without any set-up of logging.

    Raises CheckpointError where the file is missing, truncated, of a kind that is not read, or holds no
    network with such keys, or not the weights that are asked for; UnknownNameError for another word.
    """
    file = Path(path)
    if weights not in choices.CHOICES:
        raise UnknownNameError.of("weights", weights, choices.CHOICES)
    return choose(files.read(file), f"checkpoint '{file}'", weights, keys)


def choose(
    content: Mapping[str, Any], origin: str, weights: str, keys: Keys
) -> tuple[str, dict[str, Tensor]]:
    """As ``read``, of what a file held. origin: what to call it in messages."""
    choice = choices.choose(content, weights, origin, keys)
    if choice.note:
        _log.log(logging.WARNING if choice.free else logging.INFO, "%s", choice.note)
        origin = f"{origin}{choice.network.where}"
    return origin, choice.network.tensors


def fetch(repository: str) -> str:
    """The path of the weights of a repository on the Hugging Face hub, through huggingface_hub's cache."""
    instead = (
        f"Fetch model.safetensors of '{repository}' from the Hugging Face hub by other means and pass "
        f"checkpoint='model.safetensors'."
    )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise CheckpointError(
            f"pretrained=True needs the package huggingface_hub (pip install 'effv2_kernels[hub]'). {instead}"
        ) from error
    try:
        path: str = hf_hub_download(repo_id=repository, filename="model.safetensors")
    except Exception as error:  # the hub's errors have no common base, and each means the same here
        raise CheckpointError(
            f"cannot fetch the weights of '{repository}': {reason(error)}. {instead}"
        ) from error
    return path


@dataclass(frozen=True)
class Advice:
    """What to do about a file that does not fit. fits: as a ``CheckpointError`` has it."""

    text: str
    fits: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_classes(cls, count: int) -> Advice:
        """Of a file with another number of classes."""
        return cls(f"The file has {count} classes: pass num_classes={count}.", {"num_classes": count})

    @classmethod
    def of_channels(cls, count: int) -> Advice:
        """Of a file for images of other channels."""
        text = f"The file takes images of {count} channels: pass in_channels={count}."
        return cls(text, {"in_channels": count})


def load_into(
    model: nn.Module,
    given: Mapping[str, Tensor],
    origin: str,
    advice: Callable[[list[str], list[str]], Advice],
) -> None:
    """Copy tensors into a model. Raises CheckpointError for missing, extra or misshapen keys.

    advice: what to do about missing and misshapen keys.
    """
    expected = model.state_dict()
    # Counters that no file needs: BatchNorm in eval mode does not read them.
    missing = [k for k in expected if k not in given and not k.endswith("num_batches_tracked")]
    extra = [k for k in given if k not in expected]
    misshapen = [k for k in given if k in expected and given[k].shape != expected[k].shape]
    if missing or extra or misshapen:
        problems = []
        if missing:
            problems.append(f"missing: {listed(missing)}")
        if extra:
            problems.append(f"not in the model: {listed(extra)}")
        if misshapen:
            shapes = [f"{k} {tuple(given[k].shape)}, expected {tuple(expected[k].shape)}" for k in misshapen]
            problems.append(f"of another shape: {listed(shapes)}")
        found = advice(missing, misshapen)
        raise CheckpointError(
            f"{origin} does not fit the model; {'; '.join(problems)}. {found.text}", found.fits
        )
    model.load_state_dict(dict(given), strict=False)
