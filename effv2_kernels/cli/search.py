"""``search``: find the most accurate subnet of a supernet that is small and fast enough."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from effv2_kernels.backends import TORCH_DTYPES
from effv2_kernels.cli import datasets
from effv2_kernels.errors import InputError, UnavailableError, UnknownNameError
from effv2_kernels.progress import progress_bar

if TYPE_CHECKING:
    import torch

    from effv2_kernels.search.budgets import Budgets
    from effv2_kernels.search.cost import Costs
    from effv2_kernels.search.dataset_images import DatasetImages
    from effv2_kernels.search.evaluation import SupernetEvaluator
    from effv2_kernels.search.found import Source
    from effv2_kernels.search.images import Images
    from effv2_kernels.search.latency import Device, LatencyTable
    from effv2_kernels.search.mes import MES
    from effv2_kernels.search.search import Found, Problem, Search
    from effv2_kernels.search.step import Step
    from effv2_kernels.search.supernet import Supernet

METHODS = ("slimming", "evolution", "random")

_EPILOG = """\
Slimming ends with the subnet that it came to within all budgets, evolution and random search with the most
accurate one that they met. OUTPUT then has

  architecture.json, weights.safetensors   for create_model(architecture=..., checkpoint=...)
  NEXT.txt                                 what was found, and the commands to fine-tune it
  steps.jsonl, evaluations.jsonl           every step and every accuracy; a search that was killed goes on
                                           from them with --resume, and ends as if it had not been
  front.png, path.png, network.png         accuracy against latency, the way there, and the network

examples:
  # as published: slim the largest subnet by accuracy drop per gain in MES
  python -m effv2_kernels search --supernet supernet.safetensors --data DATA \\
    --latency here.json --max-latency 3.5 --max-parameters 3.6 --output found
  # within the time of two devices at once
  ... --latency here.json --latency phone.json --max-latency 3.5 --max-latency 0.9 --force
  # by speed alone, whatever the size; by size alone
  ... --latency here.json --max-latency 3.5 --alpha parameters=0
  ... --max-parameters 3.6 --alpha latency=0
  # energy as well, from a table of the same format that someone measured for each block
  ... --metric energy=energy.json --max energy=2.5 --alpha energy=0.5
  # the same number of evaluations at random, as a check
  ... --method random --evaluations 400
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "--supernet", required=True, metavar="FILE", help="trained weights of all subnets, with their space"
    )
    datasets.add_places(
        parser,
        more="; or a .safetensors file of tensors training (N, C, H, W), images (M, C, H, W) and classes "
        "(M,) int64. Training images make BatchNorm statistics; those that `supernet` held out say how "
        "accurate a subnet is",
    )
    parser.add_argument("--output", required=True, metavar="OUTPUT", help="the folder for all that is found")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the search that OUTPUT has, on the same images: of those in a folder, names and "
        "order are compared, and not what the files hold, so leave the pictures as they are",
    )
    _add_budgets(parser)
    _add_method(parser)
    parser.add_argument(
        "--images", type=int, metavar="N", help="compare on so many held-out images; default: all"
    )
    parser.add_argument(
        "--calibration",
        type=int,
        default=1000,
        metavar="N",
        help="training images for the BatchNorm statistics of each subnet; default: 1000",
    )
    parser.add_argument("--batch", type=int, default=250, metavar="N", help="images at once; default: 250")
    parser.add_argument(
        "--evaluations-file",
        metavar="FILE",
        help="where accuracies are kept; default: OUTPUT/evaluations.jsonl. Searches of one supernet on the "
        "same images and --device may share one, one after the other",
    )
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="what evaluates subnets: cpu (default) or cuda"
    )
    parser.add_argument(
        "--explain", action="store_true", help="print each step: what was considered, and why this was taken"
    )


def _add_budgets(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("budgets, all of which hold at the end; at least one")
    group.add_argument("--max-parameters", type=float, metavar="M", help="millions of parameters")
    group.add_argument("--max-macs", type=float, metavar="M", help="millions of multiply-adds of an image")
    group.add_argument(
        "--max-latency",
        type=float,
        action="append",
        default=[],
        metavar="T",
        help="in the unit of the table, such as ms; one for each --latency, in the same order",
    )
    group.add_argument(
        "--latency",
        action="append",
        default=[],
        metavar="TABLE",
        help="what `latency` measured; several times for several devices",
    )
    group.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME=TABLE",
        help="another metric that adds up over blocks, such as energy, from a table as `latency` writes it",
    )
    group.add_argument(
        "--max", action="append", default=[], metavar="NAME=VALUE", help="the budget of such a metric"
    )
    group.add_argument(
        "--force",
        action="store_true",
        help="take tables of another machine, number format, batch or version than this one's",
    )
    group.add_argument("--dtype", default="fp32", help="of the networks that tables are for; default: fp32")
    group.add_argument(
        "--table-device", default="cpu", metavar="NAME", help="that tables are for: cpu (default) or cuda"
    )
    group.add_argument("--table-batch", type=int, default=1, metavar="N", help="of tables; default: 1")
    group.add_argument("--threads", type=int, metavar="N", help="of tables; default: PyTorch's")


def _add_method(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to search")
    group.add_argument(
        "--method", choices=METHODS, default="slimming", help="default: slimming, as published"
    )
    group.add_argument(
        "--alpha",
        action="append",
        default=[],
        metavar="METRIC=VALUE",
        help="exponent of parameters, latency, macs or another metric in MES, how much it counts; default: "
        "parameters=0.5 and latency=1",
    )
    group.add_argument(
        "--gain",
        choices=("mes", "exceeding"),
        default="mes",
        help="of slimming: per gain in the whole MES (default, as published), or in that of the metrics "
        "whose budgets do not hold yet",
    )
    group.add_argument(
        "--least-drop",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of slimming: what smaller drops of accuracy count as; default: 0, so that an accuracy that "
        "rises by chance counts as no drop; -1: all as measured",
    )
    group.add_argument(
        "--fill",
        action="store_true",
        help="use what budgets leave: slimming goes up again at the end, by the most accurate steps that "
        "fit; evolution and random search make each subnet larger, by random steps, before they evaluate it",
    )
    group.add_argument(
        "--evaluations",
        type=int,
        default=200,
        metavar="N",
        help="of evolution and random: how many subnets are evaluated; default: 200",
    )
    group.add_argument("--seed", type=int, default=0, help="of evolution and random; default: 0")


def run(args: argparse.Namespace) -> int:
    from effv2_kernels.search.supernet import supernet_file

    _check_alone()
    _check_counts(args)
    _check_dtype(args.dtype)
    device = _device(args.device)  # whatever the images are: training would give advice that is none here
    supernet = supernet_file.load(args.supernet)
    if Path(args.data).suffix == ".safetensors":
        if args.dataset:
            raise InputError(
                f"--data is a file of tensors, {args.data}, which is no --dataset {args.dataset}: leave that "
                f"out, or give the folder that the dataset is in."
            )
        _run(args, supernet.to(device), _tensor_images(args, supernet))
        return 0
    from effv2_kernels.train import packages

    packages.require()
    from effv2_kernels.search.dataset_images import DatasetImages
    from effv2_kernels.train import processes

    with processes(args.device) as group:
        images = DatasetImages.of_supernet(
            args.supernet,
            supernet,
            args.data,
            group,
            dataset=args.dataset,
            batch=args.batch,
            calibration=args.calibration,
            most=args.images,
            workers=args.workers,
        )
        _run(args, supernet.to(group.device), images, _source(args, images))
    return 0


def _source(args: argparse.Namespace, images: DatasetImages) -> Source:
    from effv2_kernels.search.found import Source

    recipe = images.recipe
    return Source(args.data, args.dataset, recipe.crop, recipe.interpolation, images.trainable)


def _tensor_images(args: argparse.Namespace, supernet: Supernet) -> Images:
    from effv2_kernels.search.images import tensor_images

    return tensor_images(
        args.data,
        img_size=supernet.space.img_size,
        in_channels=supernet.space.in_channels,
        classes=supernet.num_classes,
        batch=args.batch,
        calibration=args.calibration,
        most=args.images,
    )


def _run(args: argparse.Namespace, supernet: Supernet, images: Images, source: Source | None = None) -> None:
    """source: of images that ``train`` takes as well."""
    from effv2_kernels.search.cost import Costs
    from effv2_kernels.search.evaluation import SupernetEvaluator
    from effv2_kernels.search.search import Problem, run_in
    from effv2_kernels.search.step import explain

    evaluator = SupernetEvaluator(supernet, images)
    tables = _tables(args, supernet)
    costs = Costs(
        supernet.space,
        classes=supernet.num_classes,
        tables=tables,
        others=_others(args),
    )
    problem = Problem(costs, _budgets(args, costs), _mes(args, costs), evaluator)
    output, cache = Path(args.output), args.evaluations_file

    def show(step: Step) -> None:
        if args.explain:
            print(explain(step), flush=True)

    with progress_bar() as progress:
        found = run_in(
            output,
            _search(args),
            problem,
            resume=args.resume,
            evaluations=None if cache is None else Path(cache),
            record=show,
            progress=progress,
        )
    _write(output, evaluator, problem, found, args.method, source)


def _check_alone() -> None:
    """Several processes would take each other's shares of the images, and write the same files."""
    count = os.environ.get("WORLD_SIZE") or "1"
    if count != "1":
        raise InputError(
            f"a search is one process, but torchrun has started {count}: start it by python alone."
        )


def _check_counts(args: argparse.Namespace) -> None:
    for name in ("images", "calibration", "batch", "table_batch", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, but got {value}.")


def _check_dtype(name: str) -> None:
    """Of tables: ``latency`` measures networks in those alone."""
    if name not in TORCH_DTYPES:
        raise UnknownNameError.of("--dtype", name, TORCH_DTYPES)


def _device(name: str) -> torch.device:
    from effv2_kernels import devices

    device = devices.named(name, "--device takes cpu, cuda or cuda:1")
    devices.require(device, "subnets are evaluated", f"--device {name} needs a GPU: take cpu.")
    return device


def _tables(args: argparse.Namespace, supernet: Supernet) -> dict[str, LatencyTable]:
    """By the names of their files."""
    from effv2_kernels.search.latency import LatencyTable

    tables = {path: LatencyTable.read(path) for path in args.latency}
    if len(tables) < len(args.latency):
        raise InputError("one --latency table is given twice: give each device's once.")
    if not tables:
        return {}
    expected = _timed_here(args, supernet)
    for path, table in tables.items():
        for difference in table.require(expected, what=f"the latency table '{path}'", force=args.force):
            print(f"{path} is taken nevertheless: {difference}", file=sys.stderr)
    stems = {Path(path).stem for path in tables}
    return {Path(path).stem if len(stems) == len(tables) else path: t for path, t in tables.items()}


def _others(args: argparse.Namespace) -> dict[str, LatencyTable]:
    """By the names of their metrics; they need not be of this machine."""
    from effv2_kernels.search.latency import LatencyTable

    found: dict[str, LatencyTable] = {}
    for text in args.metric:
        name, _, path = text.partition("=")
        if not name.strip() or not path:
            raise InputError(f"--metric takes NAME=TABLE, such as energy=energy.json, but got {text!r}.")
        _once("--metric", name.strip(), found)
        found[name.strip()] = LatencyTable.read(path)
    return found


def _timed_here(args: argparse.Namespace, supernet: Supernet) -> Device:
    from effv2_kernels.search.latency.timer import Timer

    return Timer(
        supernet.space.img_size,
        in_channels=supernet.space.in_channels,
        classes=supernet.num_classes,
        batch=args.table_batch,
        device=args.table_device,
        dtype=args.dtype,
        threads=args.threads,
    ).device


def _budgets(args: argparse.Namespace, costs: Costs) -> Budgets:
    from effv2_kernels.search.budgets import Budgets
    from effv2_kernels.search.cost import MACS
    from effv2_kernels.search.mes import PARAMETERS

    if len(args.max_latency) not in (0, len(costs.tables)):
        raise InputError(
            f"give one --max-latency for each --latency, in the same order, or none; got "
            f"{len(args.max_latency)} for {len(costs.tables)}."
        )
    own = {PARAMETERS: args.max_parameters, MACS: args.max_macs}
    own |= dict(zip(costs.tables, args.max_latency, strict=False))
    limits = {name: limit for name, limit in own.items() if limit is not None}
    for name, limit in _numbers("--max", args.max).items():
        _once("--max or its own option", name, limits)
        limits[name] = limit
    return Budgets(limits)


def _mes(args: argparse.Namespace, costs: Costs) -> MES:
    """Without a table there is no latency, and size alone is left of the published score."""
    from effv2_kernels.search.mes import EXPONENTS, LATENCY, MES

    exponents = {name: value for name, value in EXPONENTS.items() if costs.tables or name != LATENCY}
    exponents |= _numbers("--alpha", args.alpha)
    return MES({name: value for name, value in exponents.items() if value != 0})


def _numbers(option: str, texts: list[str]) -> dict[str, float]:
    """Of METRIC=NUMBER each, every metric once."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        name = name.strip()
        try:
            number = float(value)
        except ValueError:
            name = ""
        if not name:
            raise InputError(f"{option} takes METRIC=NUMBER, such as parameters=0.5, but got {text!r}.")
        _once(option, name, found)
        found[name] = number
    return found


def _once(option: str, name: str, given: Collection[str]) -> None:
    """Raise InputError where a metric was given already: the first or the second would be ignored."""
    if name in given:
        raise InputError(f"{name} is given twice, by {option}: give it once.")


def _search(args: argparse.Namespace) -> Search:
    from effv2_kernels.search.methods.evolution import Evolution
    from effv2_kernels.search.methods.random_search import RandomSearch
    from effv2_kernels.search.methods.slimming import Slimming

    if args.method == "slimming":
        return Slimming(args.gain, args.fill, args.least_drop)
    chosen = {"evolution": Evolution, "random": RandomSearch}[args.method]
    made: Search = chosen(args.evaluations, args.seed, fill=args.fill)
    return made


def _write(
    output: Path,
    evaluator: SupernetEvaluator,
    problem: Problem,
    found: Found,
    method: str,
    source: Source | None,
) -> None:
    from effv2_kernels.search import found as files
    from effv2_kernels.search import pictures

    best, costs = found.best, problem.costs
    summary = (
        f"Found by {method} in {len(found.steps)} steps, which evaluated {len(found.candidates())} subnets:\n"
        f"{best.accuracy:.2%} of the held-out images, {costs.describe(best.metrics)}, MES {best.mes:.4g}"
    )
    written = files.write(output, evaluator.calibrated(best.architecture), found, summary, source)
    metric = next((name for name in problem.budgets.limits if name in costs.tables), None)
    metric = metric or next(iter({**costs.tables, **problem.budgets.limits}))
    unit = costs.units.get(metric, "")
    try:
        pictures.draw_front({method: found}, metric, output / "front.png", unit=unit)
        pictures.draw_path(found, metric, output / "path.png", unit=unit)
        pictures.draw_network(best.architecture, output / "network.png")
    except UnavailableError as error:  # what was found is there without them
        print(error, file=sys.stderr)
    print(f"{summary}\nwritten to {output}; how to go on is in {written[-1]}")
