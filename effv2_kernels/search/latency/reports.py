"""Latency on another machine: networks to take there, and what ``effv2-run`` said of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import effv2_kernels
from effv2_kernels.errors import LatencyError, ModelError
from effv2_kernels.families.efficientformer_v2 import Architecture, sizes
from effv2_kernels.families.efficientformer_v2.model import EfficientFormerV2
from effv2_kernels.search.latency.fit import Reading, table_of
from effv2_kernels.search.latency.table import DAMAGED, Device, LatencyTable, write_json
from effv2_kernels.search.latency.task import Task
from effv2_kernels.search.space.space import SearchSpace

_LIST = "networks.json"


def export(
    networks: Sequence[Architecture], space: SearchSpace, classes: int, folder: Path, dtype: str = "fp32"
) -> None:
    """Write networks with random weights, and a list of them, into a folder.

    There, or where it was copied to, each is run by ``command(space)``. Raises LatencyError where the folder
    cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LatencyError(f"the folder {folder} cannot be made: {error.strerror}.") from error
    named = {}
    for number, architecture in enumerate(networks):
        model = EfficientFormerV2(
            architecture,
            img_size=space.img_size,
            in_channels=space.in_channels,
            num_classes=classes,
            layer_scale_init=None,
        )
        name = f"network-{number:03}"
        fast = effv2_kernels.optimize(model.eval())
        effv2_kernels.save(fast, folder / f"{name}.effv2", dtype="fp16" if dtype == "fp16" else "fp32")
        named[name] = sizes(architecture)
    listed = {"space": json.loads(space.to_json()), "classes": classes, "networks": named}
    write_json(folder / _LIST, listed)


def command(space: SearchSpace) -> str:
    """What runs a network on another machine, so that its report lies beside it."""
    rows, columns = space.img_size
    return f"effv2-run NAME.effv2 --img-size {rows}x{columns} --profile --json > NAME.json"


def table_of_reports(folder: Path, machine: str) -> LatencyTable:
    """The table that reports make which lie beside the networks of a folder. machine: its name.

    Raises LatencyError for a folder that lacks some, as blocks would have no times then, for reports of
    several machines' settings, and for those that are none.
    """
    try:
        listed = json.loads((folder / _LIST).read_text(encoding="utf-8"))
        networks = {
            name: Architecture.from_json(json.dumps(found)) for name, found in listed["networks"].items()
        }
        space = SearchSpace.from_json(json.dumps(listed["space"]))
        task = Task.of(space, int(listed["classes"]))
        if not networks:
            raise ValueError("it lists no networks")
    except (OSError, ModelError, *DAMAGED) as error:
        raise LatencyError(
            f"{folder} is no folder that 'python -m effv2_kernels latency --export' wrote ({error})."
        ) from error
    missing = [name for name in networks if not (folder / f"{name}.json").exists()]
    if missing:
        raise LatencyError(
            f"{folder} lacks the reports of {len(missing)} of its {len(networks)} networks "
            f"({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}): run '{command(space)}' "
            f"for each of them, on the machine that is meant, and put what it writes there."
        )
    devices: set[tuple[Any, ...]] = set()
    readings = []
    for name, architecture in networks.items():
        device, reading = _read(folder / f"{name}.json", machine, architecture, task)
        devices.add((device.runs, device.dtype, device.threads, device.batch, str(device.versions)))
        readings.append(reading)
    if len(devices) > 1:
        raise LatencyError(
            f"the reports in {folder} are of {len(devices)} settings (ISA, dtype, threads, batch, version): "
            f"{sorted(devices)}. Make all of them with the same."
        )
    return table_of(readings, device, task)


def _read(path: Path, machine: str, architecture: Architecture, task: Task) -> tuple[Device, Reading]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        network = report["network"]
        device = Device(
            machine,
            str(network["isa"]),
            str(network["dtype"]),
            int(network["threads"]),
            int(report["input"]["shape"][0]),
            {"effv2_kernels": str(report["version"])},
        )
        blocks = [block["milliseconds"] for block in report["profile"]["blocks"]]
        whole = report["latency"]["milliseconds"]["p50"]
        return device, Reading.of(architecture, task, blocks=blocks, whole=whole)
    except (OSError, *DAMAGED) as error:
        raise LatencyError(
            f"{path} is no report of effv2-run with --profile and --json ({type(error).__name__}: "
            f"{error}): run the network of that name again."
        ) from error
