"""EFFV2_CUDA: what it makes of a build, and what it says without NVIDIA's compiler."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_packaging import sources

import effv2_kernels

ROOT = Path(__file__).resolve().parents[1]
MESSAGE = "EFFV2_CUDA needs NVIDIA's compiler, and there is no"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    sources(folder)
    return folder


def build(command: list, source: Path, compiler: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EFFV2_CUDA": "1", "CUDACXX": str(compiler)}
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=600)


def test_a_wheel_without_the_compiler_says_what_is_missing(source, tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path]
    done = build([*pip, source], source, tmp_path / "no-nvcc")
    assert done.returncode
    assert f"{MESSAGE} {tmp_path / 'no-nvcc'}" in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_cmake_without_the_compiler_says_what_is_missing(tmp_path):
    cmake = ["cmake", "-S", ROOT, "-B", tmp_path, "-DEFFV2_CUDA=ON", "-DEFFV2_PYTHON=OFF"]
    done = build(cmake, ROOT, tmp_path / "no-nvcc")
    assert done.returncode
    assert MESSAGE in " ".join(done.stderr.split())


def test_the_version_has_the_label_of_the_compilers_cuda(source, tmp_path):
    compiler = tmp_path / "nvcc"
    compiler.write_text('#!/bin/sh\necho "Cuda compilation tools, release 12.9, V12.9.41"\n')
    compiler.chmod(0o755)
    # As in a source distribution.
    (source / "setup.cfg").write_text("[egg_info]\ntag_build = \ntag_date = 0\n")
    command = [sys.executable, "setup.py", "--quiet", "dist_info", "--output-dir", tmp_path]
    done = build(command, source, compiler)
    (source / "setup.cfg").unlink()
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.glob("*.dist-info")
    assert made.name == f"effv2_kernels-{effv2_kernels.__version__}+cu129.dist-info"


def test_a_source_distribution_is_the_same_for_all(source, tmp_path):
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path]
    done = build(command, source, tmp_path / "no-nvcc")
    assert done.returncode == 0, done.stderr
    assert [made.name for made in tmp_path.iterdir()] == [f"effv2_kernels-{effv2_kernels.__version__}.tar.gz"]


def test_architectures_are_the_same_everywhere():
    text = (ROOT / "cmake" / "cuda.cmake").read_text(encoding="utf-8")
    (found,) = re.findall(r"set\(EFFV2_CUDA_ARCHITECTURES ([\d ]+) CACHE", text)
    for name in ("compiled_kernels.py", "ask_cuda_wheel.py"):
        script = (ROOT / "scripts" / name).read_text(encoding="utf-8")
        listed = re.findall(r"ARCHITECTURES (?:=|==) [\"(]([\d\", ]+)[\")]", script)
        assert [re.findall(r"\d+", numbers) for numbers in listed] == [found.split()], name
