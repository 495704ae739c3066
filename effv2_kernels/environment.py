"""What a bug report needs to say about the machine and the installation."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "timm", "openvino", "onnxruntime", "safetensors", "huggingface_hub")
VARIABLES = ("EFFV2_FORCE_ISA", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")


def collect() -> dict[str, dict[str, Any]]:
    """The report: sections of values that JSON can hold.

    Never raises for a broken installation, since that is when it is needed: what cannot be found out is
    reported with its reason.
    """
    import effv2_kernels

    return {
        "effv2_kernels": {
            "version": effv2_kernels.__version__,
            "location": str(Path(effv2_kernels.__file__).parent),
        },
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
        },
        "system": {
            "platform": platform.platform(),
            "machine": platform.machine(),
            "libc": " ".join(part for part in platform.libc_ver() if part) or None,
        },
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu(),
        "torch": _torch(),
        "gpu": _gpu(),
        "variables": {name: os.environ.get(name) for name in VARIABLES},
    }


def render(report: dict[str, dict[str, Any]]) -> str:
    """The report as text: one section per paragraph, one value per line."""
    width = max(len(key) for section in report.values() for key in section)
    lines: list[str] = []
    for title, section in report.items():
        lines.append(title)
        lines.extend(f"  {key:<{width}}  {_text(value)}" for key, value in section.items())
    return "\n".join(lines)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    report: dict[str, Any] = {"logical": os.cpu_count()}
    try:
        from effv2_kernels import _native
    except ImportError as error:
        return report | {"engine": f"cannot be imported: {error}"}
    try:
        report |= {
            "model": _native.cpu_name(),
            "usable": _native.usable_cpus(),
            "isas compiled": _native.isas(),
            "isas available": _native.available_isas(),
        }
        report["isa chosen"] = _native.default_isa()
    except AttributeError as error:
        report["engine"] = f"is of another version, build it again: {error}"
    except _native.NativeError as error:
        report["isa chosen"] = f"none: {error}"
    return report


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:
        return {"import": f"fails: {error}"}
    return {
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "mkldnn": torch.backends.mkldnn.is_available(),
    }


def _gpu() -> dict[str, Any]:
    try:
        import torch

        from effv2_kernels.backends import cuda_module
        from effv2_kernels.gpu.findings import driver_version

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        report: dict[str, Any] = {"found": gpus, "driver": driver_version() if gpus else None}
        module, why_not = cuda_module()
        report["CUDA kernels"] = why_not or f"CUDA {module.VERSION}"
        if module is not None and not module.emulated:
            report["CUDA kernels for"] = module.ARCHITECTURES
            report["CUDA kernels need"] = f"driver {module.LEAST_DRIVER}"
            report["CUDA kernels run"] = module.why_not() or "yes"
    except Exception as error:
        return {"asked": f"fails: {error}"}
    return report
