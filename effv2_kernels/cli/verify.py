"""``verify``: compare an optimised model with the float64 reference."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from effv2_kernels import photo
from effv2_kernels.cli import models

if TYPE_CHECKING:
    from torch import Tensor

# Relative L2 over the output of a whole network in fp32; a block alone keeps to half of it.
BOUND = 1e-6
# Images that are computed at once.
_AT_ONCE = 16


@dataclass(frozen=True)
class Difference:
    """How far ``actual`` is from ``expected`` (float64, same shape), over the whole output."""

    relative_l2: float
    worst: float  # largest absolute difference
    position: tuple[int, ...]  # where that is
    actual: float  # the two values there
    expected: float
    same_top1: int  # images whose largest logit is the same
    images: int

    @classmethod
    def of(cls, actual: Tensor, expected: Tensor) -> Difference:
        import torch

        difference = (actual.double() - expected).abs()
        # NaN must count as the worst of all, and max() would pass it on only by luck of the comparison.
        flat = int(torch.where(difference.isnan(), torch.inf, difference).argmax())
        position = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), expected.shape))
        return cls(
            relative_l2=float(difference.norm() / expected.norm()),
            worst=float(difference[position]),
            position=position,
            actual=float(actual[position]),
            expected=float(expected[position]),
            same_top1=int((actual.argmax(1) == expected.argmax(1)).sum()),
            images=len(expected),
        )

    def within(self, bound: float) -> bool:
        """Whether the relative L2 is a number no larger than ``bound``."""
        return self.relative_l2 <= bound


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="photographs; default: random images")
    models.add_arguments(parser)
    models.add_run_arguments(parser)
    parser.add_argument("--count", type=int, default=4, metavar="N", help="random images; default: 4")
    parser.add_argument(
        "--all-isas", action="store_true", help="check every instruction set that this machine can run"
    )


def run(args: argparse.Namespace) -> int:
    import copy

    import torch

    import effv2_kernels
    from effv2_kernels import cpu

    model = models.build(args)
    if args.images:
        inputs = torch.cat([photo.read(path, args.img_size, args.in_channels) for path in args.images])
    else:
        inputs = models.random_images(args, args.count)
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()
        expected = _in_parts(lambda part: exact(part.double()), inputs)
        eager = Difference.of(_in_parts(model, inputs), expected)
        size = "x".join(map(str, args.img_size))
        print(f"{models.called(args)}, {len(inputs)} x {size}, fp32 against float64")
        print(f"{'':10} relative L2   worst element   same top-1")
        _print("eager", eager)
        failed = False
        for isa in cpu.native().available_isas() if args.all_isas else [args.isa or cpu.default_isa()]:
            fast = effv2_kernels.optimize(model, isa=isa, threads=args.threads)
            found = Difference.of(_in_parts(fast, inputs), expected)
            _print(isa, found)
            if not found.within(BOUND):
                failed = True
                print(
                    f"{isa} is over the bound of {BOUND:.0e}: at {found.position} it gives "
                    f"{found.actual:.9g} where the reference has {found.expected:.9g}"
                )
    print("FAILED" if failed else f"within the bound of {BOUND:.0e}")
    return int(failed)


def _in_parts(call: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The outputs for all images, a few at a time: float64 maps of many of them would take all memory."""
    import torch

    return torch.cat([call(part) for part in inputs.split(_AT_ONCE)])


def _print(name: str, found: Difference) -> None:
    print(
        f"{name:10} {found.relative_l2:11.2e} {found.worst:15.2e}   {found.same_top1} of {found.images}",
    )
