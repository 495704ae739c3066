"""The whole chain for one seed: a supernet, a latency table, searches, fine-tuning, and the comparison.

    python bench/search/study.py --seed 0          # at most 90 minutes on two cores
    python bench/search/table.py build/study/fashion/seed-*.json
    python bench/search/study.py --setting fashion-fast    # other budgets, on that supernet; half an hour

A command that was ended goes on where it was. BUILD/fashion/latency.json is measured once for all seeds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.search.chain import Chain, latency_table
from bench.search.commands import run
from bench.search.comparison import compare
from bench.search.settings import ROOT, SETTINGS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--setting", choices=sorted(SETTINGS), default="fashion", help="default: fashion")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "study", help="default: build/study")
    args = parser.parse_args()
    setting = SETTINGS[args.setting]
    seed = f"seed-{args.seed}"
    folder, shared = (args.build.resolve() / name for name in (setting.name, setting.of or setting.name))
    chain = Chain(setting, args.seed, folder / seed, shared / "latency.json", shared / seed)
    done = {"latency table": run(latency_table(setting, chain.table)), **chain.run()}
    path = folder / f"{seed}.json"
    compare(chain, done, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
