"""``env``: print what a bug report needs."""

from __future__ import annotations

import argparse
import json

from effv2_kernels import environment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    report = environment.collect()
    print(json.dumps(report, indent=2) if args.json else environment.render(report))
    return 0
