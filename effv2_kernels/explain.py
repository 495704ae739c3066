"""Say of every part of an optimised model what runs it, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from effv2_kernels import blocks, sources
from effv2_kernels.declaration import block_sizes
from effv2_kernels.engine import Decision, KernelRow, OneLaunchRow
from effv2_kernels.errors import ModelError
from effv2_kernels.inputs import fitting_sizes, rows_and_columns
from effv2_kernels.model import OptimizedModel
from effv2_kernels.tables import shape_text, text_table
from effv2_kernels.verification import noted

_DEFAULT_SIZE = 224


@dataclass(frozen=True)
class BlockRow:
    """One block of an optimised network, for one image."""

    block: str  # its kind, e.g. "ffn"
    source: str  # dotted path of the module it was read from
    backend: str
    isa: str
    dtype: str
    input: tuple[int, ...]  # (channels, height, width); (channels,) where the size is not known
    output: tuple[int, ...]  # the same, or (classes,)
    gflop: float  # two for each multiply-add; NaN where the size is not known
    bytes: int  # of the folded weights
    kernels: tuple[KernelRow, ...] = ()  # on a GPU, for the last batch of this size, in order
    way: str = ""  # of those that the backend has for the block, such as "whole"
    why: str = ""  # this backend and way were chosen, where there were several


@dataclass(frozen=True)
class Left:
    """A part of a larger module that runs in PyTorch as before."""

    path: str  # dotted; "" is the module itself
    class_name: str
    reason: str
    bytes: int  # of its parameters and buffers


@dataclass(frozen=True)
class Joined:
    """An optimised network whose launches can be one, at ``path`` ("" is the module itself)."""

    path: str
    row: OneLaunchRow


@dataclass(frozen=True)
class Explanation:
    """What ``explain`` returns; printing it gives a table."""

    rows: tuple[BlockRow, ...]
    left: tuple[Left, ...]
    why: tuple[str, ...]  # one line for each backend and ISA in use: which parts run on it, and the reason
    verified: str = ""  # what optimize() found when it ran the original and the result on a random image
    one_launch: tuple[Joined, ...] = ()  # on a GPU: whether each network is one launch, and of what tasks
    show_tasks: bool = False  # whether they are printed as well

    @property
    def gflop(self) -> float:
        """Of all blocks whose size is known, for one image."""
        return sum(row.gflop for row in self.rows if not math.isnan(row.gflop))

    @property
    def bytes(self) -> int:
        """Of the folded weights of all blocks."""
        return sum(row.bytes for row in self.rows)

    def __str__(self) -> str:
        header = ("block", "source", "backend", "ISA", "dtype", "input", "output", "GFLOP", "MB")
        body = [
            (
                row.block,
                row.source or "(whole model)",
                row.backend,
                row.isa,
                row.dtype,
                shape_text(row.input),
                shape_text(row.output),
                "?" if math.isnan(row.gflop) else f"{row.gflop:.4f}",
                f"{row.bytes / 1e6:.3f}",
            )
            for row in self.rows
        ]
        total = (
            "total",
            f"{len(self.rows)} blocks",
            *[""] * 5,
            f"{self.gflop:.4f}",
            f"{self.bytes / 1e6:.3f}",
        )
        lines = [*self.why, *filter(None, [self.verified]), text_table(header, [*body, total], left=7)]
        if any(row.why for row in self.rows):
            lines += ["\nChosen:", self._choice_table()]
        for joined in self.one_launch:
            lines += ["", *_one_launch_lines(joined, self.show_tasks)]
        if any(row.kernels for row in self.rows):
            lines += ["\nKernels:", self._kernel_table()]
        if self.left:
            lines.append("\nLeft in PyTorch:")
            lines.append(
                text_table(
                    ("module", "class", "MB", "reason"),
                    [
                        (p.path or "(itself)", p.class_name, f"{p.bytes / 1e6:.3f}", p.reason)
                        for p in self.left
                    ],
                    left=4,
                )
            )
        return "\n".join(lines)

    def _choice_table(self) -> str:
        body = [
            (row.block, row.source or "(whole model)", f"{row.backend} {row.way}".strip(), row.why)
            for row in self.rows
            if row.why
        ]
        return text_table(("block", "source", "by", "why"), body, left=4)

    def _kernel_table(self) -> str:
        body = [
            (
                row.block,
                row.source or "(whole model)",
                launch.kernel,
                launch.tile,
                "?" if launch.registers is None else str(launch.registers),
                "?" if launch.shared is None else str(launch.shared),
            )
            for row in self.rows
            for launch in row.kernels
        ]
        header = ("block", "source", "kernel", "tile", "registers", "shared bytes")
        return text_table(header, body, left=4)


def optimised_parts(model: nn.Module) -> dict[str, OptimizedModel]:
    """The optimised networks in a module, by dotted path. Raises ModelError where there is none."""
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    found = {path: m for path, m in modules if isinstance(m, OptimizedModel)}
    if not found:
        raise ModelError(
            f"{type(model).__name__} holds nothing that was optimised: give what optimize() returned."
        )
    return found


def explain(
    model: nn.Module, size: int | tuple[int, int] | None = None, *, tasks: bool = False
) -> Explanation:
    """Block by block: source module, backend, ISA, dtype, shapes, GFLOP and bytes; print the result.

    On a GPU also kernel by kernel: tile, registers and shared memory; of blocks that several backends or
    kernels can run, which one does and why; and whether the network is one launch.

    model: what ``optimize`` or ``load`` returned, or a module that holds such models; its other parts are
        listed as left in PyTorch.
    size: rows and columns of the input of each optimised network, one number for both. None: those of its
        last call; before the first one those that its attention biases were made for, or 224. Parts of a
        model that have neither show their channels alone.
    tasks: print the tasks of which a network in one launch consists, in the order in which they are taken:
    the
        tile of which kernel, the flags that it waits for, and those that it raises.

    Raises ModelError for a module without an optimised network, InputError for a ``size`` that is none, and
    ResolutionError where it does not fit.
    """
    rows: list[BlockRow] = []
    one_launch: list[Joined] = []
    why: dict[str, list[str]] = {}
    parts = optimised_parts(model)
    for path, part in parts.items():
        chosen_size = input_size(part, size)
        rows += explain_part(path, part, chosen_size)
        found = None if chosen_size is None else part.engine.one_launch(*chosen_size)
        if found is not None:
            one_launch.append(Joined(path, found))
        choice = part.choice
        kind = "ISA" if choice.backend == "cpu" else "GPU"
        reason = f"backend {choice.backend} in {choice.dtype}; {kind} {choice.isa}: {choice.why}"
        why.setdefault(reason, []).append(f"'{path}'" if path else type(part).__name__)
    lines = [
        f"{', '.join(paths) if len(paths) < 4 else f'{len(paths)} parts'}: {reason}"
        for reason, paths in why.items()
    ]
    left = _left(model, "", set(parts), noted(model))
    verified = _verified(list(parts.values()))
    return Explanation(tuple(rows), tuple(left), tuple(lines), verified, tuple(one_launch), tasks)


def _one_launch_lines(joined: Joined, show_tasks: bool) -> list[str]:
    row, where = joined.row, f"'{joined.path}'" if joined.path else "the network"
    lines = [f"One launch: {where} {'runs' if row.used else 'does not run'} in one ({row.why})"]
    if row.tasks:
        lines[0] += (
            f"; {len(row.tasks)} tasks of {row.launches} launches, taken by {row.blocks} blocks of threads"
        )
    if show_tasks and row.tasks:
        body = [
            (
                str(number),
                f"{task.launch} {task.kernel}",
                str(task.tile),
                _flags(task.waits),
                _flags([task.raises]),
            )
            for number, task in enumerate(row.tasks)
        ]
        lines.append(text_table(("task", "launch", "tile", "waits for", "raises"), body, left=5))
    return lines


def _flags(ranges: Iterable[range]) -> str:
    """[range(3, 5), range(7, 8)] -> "3-4 7"."""
    return " ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in ranges if r)


def _verified(parts: list[OptimizedModel]) -> str:
    errors = [part._verified for part in parts if part._verified is not None]
    if not errors:
        return "not verified: verify=False was given, or it is from a file"
    if len(parts) == 1:
        return f"verified: relative error {errors[0]:.1e} on one random image"
    some = f"{len(errors)} of {len(parts)} parts"
    return f"verified: {some}, relative error {max(errors):.1e} at most on one random image each"


def input_size(part: OptimizedModel, size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(rows, columns) to explain a network for, None where nothing tells; see ``explain``."""
    if size is not None:
        return rows_and_columns(size, "size")
    if part.engine.last_size is not None:
        return part.engine.last_size
    fitting = fitting_sizes(part.network)
    if fitting:
        return fitting[0][1], fitting[1][1]
    whole = not part._single or isinstance(part.network.blocks[0], blocks.Stem)
    return (_DEFAULT_SIZE, _DEFAULT_SIZE) if whole else None


def explain_part(path: str, part: OptimizedModel, size: tuple[int, int] | None) -> list[BlockRow]:
    """The rows of one optimised network at ``path`` in a larger module ("" if there is none)."""
    network, engine, choice = part.network, part.engine, part.choice
    shapes: list[tuple[int, ...]]
    if size is None:
        widths = [block_sizes(block) for block in network.blocks]
        shapes = [(engine.in_channels,), *((width["out"],) for width in widths)]
        all_macs = [math.nan] * len(network.blocks)
    else:
        shapes = [(engine.in_channels, *size), *engine.block_shapes(*size)]
        all_macs = [float(macs) for macs in engine.block_macs(*size)]
    kernels = [()] * len(network.blocks) if size is None else engine.describe(*size)
    decisions = [] if size is None else engine.decisions(*size)
    rows = []
    for i, (block, name, macs) in enumerate(zip(network.blocks, network.names, all_macs, strict=True)):
        decision = decisions[i] if decisions else Decision(choice.backend, "", "")
        rows.append(
            BlockRow(
                block=block.kind,
                source=".".join(filter(None, (path, name))) if name != path else name,
                backend=decision.backend,
                isa=choice.isa,
                dtype=choice.dtype,
                input=shapes[i],
                output=shapes[i + 1][:1] if block.kind == "head" else shapes[i + 1],
                gflop=2e-9 * macs,
                bytes=sum(t.nbytes for t in block.tensors().values()),
                kernels=kernels[i],
                way=decision.way,
                why=decision.why,
            )
        )
    return rows


def _left(module: nn.Module, path: str, optimised: set[str], refused: dict[str, str]) -> list[Left]:
    """The largest submodules with tensors that hold no optimised network."""
    if path in optimised:
        return []
    inside = any(other.startswith(f"{path}." if path else "") for other in optimised)
    if not inside:
        tensors = [*module.parameters(), *module.buffers()]
        if not tensors:
            return []
        # The reason of the part itself, or of what inside it kept it from being optimised.
        found = [reason for at, reason in refused.items() if f"{at}.".startswith(f"{path}." if path else "")]
        reason = "; ".join(dict.fromkeys([*found, *(u.reason for u in sources.unrecognised(module))]))
        size = sum(t.nbytes for t in tensors)
        return [Left(path, type(module).__name__, reason or "was not given to optimize()", size)]
    left = []
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if own:
        size = sum(t.nbytes for t in own)
        left.append(Left(path, type(module).__name__, "tensors of its own, outside of any part", size))
    for name, child in module.named_children():
        left += _left(child, f"{path}.{name}" if path else name, optimised, refused)
    return left
