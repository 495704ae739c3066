"""What ``env`` reports."""

import json
import platform
import sys
from types import SimpleNamespace

import pytest
import torch

from effv2_kernels import environment
from effv2_kernels.gpu import findings


def test_report_is_json_and_names_what_a_bug_report_needs():
    report = environment.collect()
    assert json.loads(json.dumps(report)) == report
    assert report["python"]["version"] == platform.python_version()
    assert report["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert report["torch"]["threads"] == torch.get_num_threads()
    cpu = report["cpu"]
    assert cpu["usable"] >= 1
    assert cpu["isa chosen"] in cpu["isas available"]
    assert set(cpu["isas available"]) <= set(cpu["isas compiled"])
    assert cpu["isas available"][-1] == "scalar"


def test_a_bad_isa_is_reported_and_not_raised(monkeypatch):
    monkeypatch.setenv("EFFV2_FORCE_ISA", "mmx")
    report = environment.collect()
    assert report["variables"]["EFFV2_FORCE_ISA"] == "mmx"
    assert report["cpu"]["isa chosen"].startswith("none: ")
    assert "mmx" in report["cpu"]["isa chosen"]


def test_a_missing_engine_is_reported_and_not_raised(monkeypatch):
    import effv2_kernels

    monkeypatch.delattr(effv2_kernels, "_native", raising=False)
    monkeypatch.setitem(sys.modules, "effv2_kernels._native", None)
    assert "cannot be imported" in environment.collect()["cpu"]["engine"]


def test_an_outdated_engine_is_reported_and_not_raised(monkeypatch):
    from effv2_kernels import _native

    monkeypatch.delattr(_native, "usable_cpus")
    assert "is of another version" in environment.collect()["cpu"]["engine"]


def test_a_missing_package_is_a_dash(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package-as-this"))
    report = environment.collect()
    assert report["packages"]["no-such-package-as-this"] is None
    line = next(line for line in environment.render(report).splitlines() if "no-such-package" in line)
    assert line.split() == ["no-such-package-as-this", "-"]


def test_gpus_and_what_runs_on_them(monkeypatch):
    module = SimpleNamespace(
        emulated=False, VERSION="13.0", ARCHITECTURES="80 90", LEAST_DRIVER="580", why_not=lambda: "no driver"
    )
    monkeypatch.setitem(sys.modules, "effv2_kernels._cuda", module)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")
    monkeypatch.setattr(findings, "driver_version", lambda: "580.65.06")
    assert environment.collect()["gpu"] == {
        "found": ["NVIDIA Test"],
        "driver": "580.65.06",
        "CUDA kernels": "CUDA 13.0",
        "CUDA kernels for": "80 90",
        "CUDA kernels need": "driver 580",
        "CUDA kernels run": "no driver",
    }
    monkeypatch.setitem(sys.modules, "effv2_kernels._cuda", None)
    assert "has no CUDA kernels" in environment.collect()["gpu"]["CUDA kernels"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1 // 0)
    assert environment.collect()["gpu"]["asked"].startswith("fails: ")


@pytest.mark.parametrize(("value", "text"), [(None, "-"), ([], "none"), (["a", "b"], "a, b"), (2, "2")])
def test_values_as_text(value, text):
    assert environment.render({"section": {"key": value}}).splitlines()[1] == f"  key  {text}"
