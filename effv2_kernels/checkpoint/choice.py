"""Find the networks in a checkpoint, raw weights and averages of them, and choose one.

Training scripts keep an average of the weights (EMA, SWA) beside the raw ones, and evaluate the average. It
is known by the names around it, as in ``state_dict_ema`` (timm), ``model_ema`` (torchvision, DeiT), ``ema``
(YOLO-style trainers), ``callbacks / StochasticWeightAveraging / average_model_state`` (Lightning),
``ema_model.`` before every key; by the count that torch's AveragedModel keeps; or by what stands beside it:
Lightning's WeightAveraging and mmengine's and mmcv's hooks put the *average* into ``state_dict`` and the raw
weights elsewhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from effv2_kernels.errors import CheckpointError, UnknownNameError

CHOICES = ("auto", "average", "raw")

_SHOWN = 5  # keys that a message names
_DEPTH = 6  # of nested dicts; a pickle can hold itself
_MANY = 10  # tensors; a decay and counters are no average

_AVERAGE = {"ema", "swa", "average", "averaged", "averaging", "avg", "polyak", "shadow"}
_RAW = {"no", "non", "not", "without", "raw", "online", "current"}
_UNREAD = {"ema", "swa", "averaged", "shadow"}
_NO_WEIGHTS = {"optimizer", "optimizers", "optim", "online"}
# Several sets are tried in this order; timm's names, and timm's order.
_AVERAGES_FIRST = ("state_dict_ema", "model_ema", "state_dict")
_RAW_FIRST = ("state_dict", "model", "model_state_dict", "current_model_state")
# What a trainer that averages parameters alone leaves out.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class Keys(NamedTuple):
    """How a family's networks are known by the keys of a state dict.

    first: a regular expression for the first key of a network. known: "neither these keys nor those", for
    messages. buffers: the last names of tensors that are no parameters, beside those of BatchNorm.
    """

    family: str
    first: str
    known: str
    buffers: tuple[str, ...] = ()

    def prefix_of(self, key: str) -> str | None:
        """Whatever is before the first key of a network; None for another key."""
        found = re.match(rf"(?:^|.*?\.)(?={self.first})", key)
        return None if found is None else found[0]


@dataclass(frozen=True)
class Network:
    """The weights of one network in a checkpoint.

    names: where they are. average: of weights. begun: whether it is more than the start of an average.
    """

    names: tuple[str, ...]
    tensors: dict[str, Tensor]
    average: bool
    begun: bool = True

    @property
    def label(self) -> str:
        """How messages name it; nothing where the whole file is one network."""
        return f"'{' / '.join(self.names)}'" if self.names else ""

    @property
    def where(self) -> str:
        """ " in 'state_dict'"; nothing where the whole file is one network."""
        return f" in {self.label}" if self.names else ""


@dataclass(frozen=True)
class Choice:
    """What was taken, and a line to say so where the checkpoint has an average; free: nobody chose it."""

    network: Network
    note: str = ""
    free: bool = False


def choose(content: Mapping[str, Any], weights: str, origin: str, keys: Keys) -> Choice:
    """The network of a checkpoint that ``weights`` asks for, one of CHOICES.

    Raises UnknownNameError for another word and CheckpointError where there is no such network, or more than
    one.
    """
    if weights not in CHOICES:
        raise UnknownNameError.of("weights", weights, CHOICES)
    networks = list(_networks(content, (), {}, keys))
    if not networks:
        raise CheckpointError(_nothing(content, origin, keys))
    averages = _ordered([n for n in networks if n.average], _AVERAGES_FIRST)
    raws = _ordered([n for n in networks if not n.average], _RAW_FIRST)
    if not averages and weights != "raw":
        _check_all_read(content, networks, origin)
        if weights == "average":
            raise CheckpointError(
                f"{origin} holds no average of the weights, but {raws[0].label or 'one network'}: ask for "
                f"weights 'raw' or 'auto', or give the file that has the average."
            )
    if not raws and weights == "raw":
        raise CheckpointError(
            f"{origin} holds no raw weights, but an average of them{averages[0].where}: ask for weights "
            f"'average' or 'auto', or give the file that has the raw weights."
        )
    if weights == "raw" or not averages:
        raw = _only(raws, _RAW_FIRST, "networks", origin)
        left = (
            f"{origin}: took the raw weights{raw.where}, not their average{averages[0].where}."
            if averages
            else ""
        )
        return Choice(raw, left)
    average = _only(averages, _AVERAGES_FIRST, "averages", origin)
    note = f"{origin}: took the average of the weights{average.where}"
    if not raws:
        return Choice(average, f"{note}.")
    filled = _buffers(average, raws[0], keys)
    if filled:
        average = Network(average.names, average.tensors | filled, True)
        note += f", with the statistics of the BatchNorms{raws[0].where}"
    note += f", not the raw weights{raws[0].where} (ask for weights 'raw')."
    return Choice(average, note, weights == "auto")


def _networks(
    node: Mapping[str, Any], path: tuple[str, ...], parent: Mapping[str, Any], keys: Keys
) -> Iterator[Network]:
    tensors = {str(key): value for key, value in node.items() if isinstance(value, Tensor)}
    found = (keys.prefix_of(key) for key in tensors)
    prefixes = sorted({prefix for prefix in found if prefix is not None}, key=len)
    for prefix in prefixes:
        inner = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        own = {
            key[len(prefix) :]: value
            for key, value in tensors.items()
            if key.startswith(prefix) and not (inner and key.startswith(inner))
        }
        names = (*path, f"{prefix}*") if len(prefixes) > 1 or _words(prefix) & _AVERAGE else path
        # mmcv registers the raw weights as flat buffers beside the averaged ones.
        flat = {key: f"ema_{(prefix + key).replace('.', '_')}" for key in own}
        raw = {key: tensors[other] for key, other in flat.items() if other in tensors}
        if raw:
            for other in flat.values():
                own.pop(other, None)
            yield Network(names, own, True)
            yield Network((*names, "ema_*"), {key: raw.get(key, value) for key, value in own.items()}, False)
        else:
            own.pop("n_averaged", None)
            yield Network(names, own, *_is_average(node, path, parent, prefix))
    if len(path) < _DEPTH:
        for key, value in node.items():
            if isinstance(value, Mapping):
                yield from _networks(value, (*path, str(key)), node, keys)


def _is_average(
    node: Mapping[str, Any], path: tuple[str, ...], parent: Mapping[str, Any], prefix: str
) -> tuple[bool, bool]:
    """Whether a network is an average, and whether what is meant to be one has begun."""
    last = path[-1] if path else ""
    words = _words(" ".join(path)) | _words(prefix)
    # torch's AveragedModel counts in its own state; an average of nothing is the model as it began.
    counts = [node.get(f"{prefix.removesuffix('module.')}n_averaged")]
    kept = parent.get("ema_state_dict")
    if last == "state_dict" and isinstance(parent.get("current_model_state"), Mapping):
        average = True  # Lightning's WeightAveraging
        state = parent.get("averaging_state")
        counts.append(state.get("n_averaged") if isinstance(state, Mapping) else None)
    elif last in ("state_dict", "ema_state_dict") and isinstance(kept, Mapping) and "steps" in kept:
        average = last == "state_dict"  # mmengine swaps the two in what it saves
    else:
        average = counts[0] is not None or bool(words & _AVERAGE and not words & _RAW)
        counts.append(parent.get("n_averaged"))  # Lightning's StochasticWeightAveraging
    begun = not (average and any(count is not None and int(count) == 0 for count in counts))
    return average and begun, begun


def _words(name: str) -> set[str]:
    """ "EMACallback" and "state_dict_ema" in words of lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _rank(network: Network, order: tuple[str, ...]) -> int:
    first = network.names[0] if network.names else ""
    if not network.begun:
        return len(order) + 1
    return order.index(first) if first in order else len(order)


def _ordered(networks: list[Network], order: tuple[str, ...]) -> list[Network]:
    return sorted(networks, key=lambda network: _rank(network, order))


def _only(networks: list[Network], order: tuple[str, ...], what: str, origin: str) -> Network:
    """The first of some ordered networks. Raises CheckpointError where its name puts it before no other."""
    if len(networks) > 1 and _rank(networks[0], order) == _rank(networks[1], order):
        names = ", ".join(network.label or "one without a name" for network in networks)
        raise CheckpointError(
            f"{origin} holds several {what}, {names}: save the one that you mean to a file of its own."
        )
    return networks[0]


def _buffers(average: Network, raw: Network, keys: Keys) -> dict[str, Tensor]:
    """The buffers that an average of the parameters alone lacks."""
    return {
        key: value
        for key, value in raw.tensors.items()
        if key not in average.tensors and key.rpartition(".")[2] in (*_BUFFERS, *keys.buffers)
    }


def _check_all_read(content: Mapping[str, Any], networks: list[Network], origin: str) -> None:
    """Raise CheckpointError for many tensors under the name of an average which are no network."""
    known = {id(tensor) for network in networks for tensor in network.tensors.values()}
    counts: Counter[str] = Counter()

    def count(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, Tensor):
            named = [name for name in path if _words(name) & _UNREAD]
            if named and value.ndim > 0 and id(value) not in known:
                counts[named[0].split(".")[0]] += 1
        elif len(path) <= _DEPTH and isinstance(value, (Mapping, list, tuple)):
            for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
                if not _words(str(key)) & _NO_WEIGHTS:
                    count(inner, (*path, str(key)))

    count(content, ())
    for where, number in counts.items():
        if number >= _MANY:
            raise CheckpointError(
                f"{origin} keeps an average of the weights in '{where}' in a way that is not known here: "
                f"load it where it was made and save the averaged model's state dict, or ask for weights "
                f"'raw'."
            )


def _nothing(content: Mapping[str, Any], origin: str, keys: Keys) -> str:
    """The message for a checkpoint without a network, with what it has."""
    if content and all(isinstance(value, Tensor) for value in content.values()):
        held = listed([str(key) for key in content])
    else:
        entries = [f"'{key}' ({_kind(value)})" for key, value in content.items()]
        held = listed(entries) if entries else "nothing"
    if not _has_tensors(content, 0):
        return (
            f"{origin} is not a checkpoint: it holds no tensors, but {held}. Give a file that holds a "
            f"model's state dict."
        )
    return (
        f"{origin} is no {keys.family}: it has {keys.known}, but {held}. Give a file of a network of the "
        f"family {keys.family}."
    )


def _has_tensors(value: Any, depth: int) -> bool:
    if isinstance(value, Mapping):
        return depth < _DEPTH and any(_has_tensors(inner, depth + 1) for inner in value.values())
    return isinstance(value, Tensor)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        tensors = [str(key) for key, inner in value.items() if isinstance(inner, Tensor)]
        if tensors:
            return f"dict of {len(tensors)} tensors, such as {tensors[0]}"
        return f"dict of {len(value)}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def listed(keys: list[str]) -> str:
    """The first few of some keys, and how many there are."""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{', '.join(keys[:_SHOWN])}{more} ({len(keys)} in all)"
