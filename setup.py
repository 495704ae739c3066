"""Hands the build to CMake; everything else about the package is in pyproject.toml."""

import os
import re
import subprocess
import sys

from setuptools import setup
from setuptools.command.egg_info import egg_info


def cuda_label() -> str:
    """Of a wheel with kernels for NVIDIA GPUs, by the CUDA that compiles them: +cu130."""
    compiler = os.environ.get("CUDACXX", "nvcc")
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        done = None
    release = re.search(r"release (\d+)\.(\d+)", done.stdout) if done else None
    if not release:
        sys.exit(
            f"EFFV2_CUDA needs NVIDIA's compiler, and there is no {compiler}: put its folder on PATH or its "
            "path into CUDACXX, or build without EFFV2_CUDA, for the CPU and Triton"
        )
    return f"+cu{release[1]}{release[2]}"


class LabelledInfo(egg_info):
    def finalize_options(self) -> None:
        self.tag_build = cuda_label()  # whatever setup.cfg says, which source distributions have
        super().finalize_options()


# As scikit-build reads it for pyproject.toml. A source distribution is the same for all.
wanted = os.environ.get("EFFV2_CUDA", "").lower() not in ("", "0", "n", "no", "off", "f", "false")
if wanted and {"dist_info", "bdist_wheel", "editable_wheel"} & {*sys.argv}:
    setup(cmake_source_dir=".", cmdclass={"egg_info": LabelledInfo})
else:
    setup(cmake_source_dir=".")
