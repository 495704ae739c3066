"""From a module of any supported origin to the one description of a network, ``blocks.Network``.

Each family has a reader for each origin of its models (``effv2_kernels.families``); here is what they share.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from torch import nn

from effv2_kernels import blocks, families
from effv2_kernels.errors import ModelError
from effv2_kernels.families import Reader
from effv2_kernels.sources.genuine import require_genuine
from effv2_kernels.sources.node import Node, named_modules, require_usable
from effv2_kernels.sources.wrappers import why_opaque


class Unrecognised(NamedTuple):
    """A part of a module that cannot be optimised."""

    path: str  # dotted; "" is the module itself
    class_name: str
    reason: str


def _reader(module: nn.Module) -> Reader | None:
    if why_opaque(module) is not None:
        return None
    return next((reader for reader in families.readers() if reader.matches(module)), None)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _children(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if why_opaque(module) is not None:
        return
    for name, child in module._modules.items():
        if child is not None:
            yield _join(path, name), child


def _require_readable(node: Node) -> None:
    require_genuine(named_modules(node))
    require_usable(node)


def read(module: nn.Module, *, checked: bool = False) -> blocks.Network:
    """The folded network of a module that is one.

    checked: the module, or the one that it is a clone of, was read before: look at its structure alone.

    Raises ModelError for any other module, for one in training mode, with hooks, with weights that are
    not finite, with a forward that was replaced, or with a part that is not computed as blocks.py says; the
    message names the part.
    """
    reader = _reader(module)
    if reader is not None:
        if not checked:
            _require_readable(Node(module))
        return reader.read(module)
    inside = [path for path, _ in _matching(module, "")]
    if inside:
        hint = f"It holds one at {', '.join(repr(path) for path in inside)}: give that submodule."
    else:
        hint = f"Known origins: {families.origins()}."
    raise ModelError(f"{type(module).__name__} is not an {families.names()}. {hint}")


def _matching(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The outermost submodules that a reader takes for a whole network."""
    if _reader(module) is not None:
        yield path, module
        return
    for child_path, child in _children(module, path):
        yield from _matching(child, child_path)


def find_networks(module: nn.Module, *, strict: bool = True) -> list[tuple[str, blocks.Network]]:
    """Every whole network in a module, with its dotted path ('' is the module itself), in order.

    With ``strict`` a network that cannot be read raises ModelError; otherwise it is left out, and
    ``unrecognised`` says why.
    """
    found: list[tuple[str, blocks.Network]] = []
    for path, network in _matching(module, ""):
        try:
            found.append((path, read(network)))
        except ModelError as error:
            if strict:
                raise _located(error, path) from error
    return found


def _located(error: ModelError, path: str) -> ModelError:
    return ModelError(f"in '{path}': {error}") if path else error


def read_part(module: nn.Module, path: str = "", *, checked: bool = False) -> tuple[blocks.Block, ...] | None:
    """The blocks of a part; None where it is none; ModelError where it is one but cannot be read.

    path: of the part, for messages. checked: as for ``read``.
    """
    if why_opaque(module) is not None:
        return None
    for reader in families.readers():
        extract = reader.part_reader(module)
        if extract is not None:
            node = Node(module, path)
            if not checked:
                _require_readable(node)
            return tuple(block for _, block in extract(node))
    return None


def read_parts(module: nn.Module, *, skip: Collection[str] = ()) -> dict[str, tuple[blocks.Block, ...]]:
    """The parts of a module that are blocks of a known network, by dotted path.

    Each of these submodules maps (N, C, H, W) to the output of its blocks run one after another: a stem,
    a block with its residuals and layer scales (attention, if any, and FFN), a step between stages. Parts
    that cannot be read are left out (``unrecognised`` says why). skip: paths not to look into, such as
    those of ``find_networks``. Raises ModelError for a module in training mode.
    """
    if module.training:
        raise ModelError(f"{type(module).__name__} is in training mode: call model.eval() first.")
    parts: dict[str, tuple[blocks.Block, ...]] = {}

    def visit(path: str, part: nn.Module) -> None:
        if path in skip:
            return
        try:
            read_blocks = read_part(part, path)
        except ModelError:
            return
        if read_blocks is not None:
            parts[path] = read_blocks
            return
        for child_path, child in _children(part, path):
            visit(child_path, child)

    visit("", module)
    return parts


def unrecognised(module: nn.Module) -> list[Unrecognised]:
    """The largest submodules that hold nothing that is recognised, and the parts that cannot be read.

    Modules without a child and without a tensor (activations, containers) are left out, unless the
    given module is one itself.
    """
    left: list[Unrecognised] = []

    def visit(path: str, part: nn.Module) -> bool:
        """Whether something in here is recognised; what is not is added to ``left``."""
        name = type(part).__name__
        reader = _reader(part)
        opaque = why_opaque(part)
        if opaque is not None:
            left.append(Unrecognised(path, name, opaque))
            return True
        try:
            if reader is not None:
                read(part)
                return True
            if read_part(part, path) is not None:
                return True
        except ModelError as error:
            reason = str(_located(error, path) if reader is not None else error)
            if reader is None:
                left.append(Unrecognised(path, name, reason))
                return True
            mark = len(left)
            inside = [visit(child_path, child) for child_path, child in _children(part, path)]
            if not any(inside) or len(left) == mark:
                del left[mark:]
                left.append(Unrecognised(path, name, reason))
            return True
        mark = len(left)
        inside = [visit(child_path, child) for child_path, child in _children(part, path)]
        if any(inside):
            return True
        del left[mark:]
        if path == "" or next(part.parameters(), None) is not None or next(part.buffers(), None) is not None:
            left.append(Unrecognised(path, name, f"is not part of an {families.names()}"))
        return False

    visit("", module)
    return left
