"""The benches: one for each block, and what they report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from effv2_kernels.blocks import BLOCK_TYPES

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_every_block_has_a_bench(kind: str) -> None:
    assert (ROOT / "bench" / f"bench_{kind}.py").is_file()


@pytest.mark.alone
def test_bench_reports_speed_share_isa_and_threads(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    command = [sys.executable, "-m", "pytest", "bench/bench_head.py", "-q", "-p", "no:cacheprovider"]
    options = ["--benchmark-only", "--threads=1", f"--benchmark-json={path}", "-k", "s0"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}  # xdist's, above all
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())["benchmarks"]
    assert len(found) == 1
    for bench in found:
        info = bench["extra_info"]
        assert bench["group"] == "head"
        assert info["threads"] == 1
        assert info["isa"] in ("avx512", "avx2", "scalar")
        assert info["relative_l2"] <= 5e-7
        assert info["gflops"] == pytest.approx(info["gflop"] / bench["stats"]["median"], rel=0.01)
        assert 0 < info["share_of_peak"] < 1
