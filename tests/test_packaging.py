"""The package as its users get it: what importing it costs, what it needs, and what is in the wheel."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

import effv2_kernels

ROOT = Path(__file__).resolve().parent.parent
OPTIONAL = ("PIL", "huggingface_hub", "onnx", "onnxruntime", "openvino", "rich", "safetensors", "sklearn")


def python(code: str, *, cwd: Path = ROOT, path: Path | None = None) -> str:
    """Standard output of a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(path)} if path else dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pyproject() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="tomllib needs Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.alone
def test_import_adds_at_most_50_ms_to_torch():
    code = (
        "import time, torch; start = time.perf_counter(); import effv2_kernels;"
        "print(time.perf_counter() - start)"
    )
    assert min(float(python(code)) for _ in range(3)) <= 0.05


def test_import_loads_neither_torch_nor_the_engine():
    loaded = python("import sys, effv2_kernels; print(*sys.modules)").split()
    assert "effv2_kernels" in loaded
    assert not {"torch", "numpy", "effv2_kernels._native"} & set(loaded)


@pytest.mark.parametrize("name", effv2_kernels.__all__)
def test_every_public_name_exists(name):
    assert name in dir(effv2_kernels)
    assert getattr(effv2_kernels, name) is not None


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="optimise"):
        effv2_kernels.optimise  # noqa: B018


@pytest.mark.parametrize(
    "first",
    [
        "pass",
        "import effv2_kernels.{0}",
        "from effv2_kernels.{0} import {0}",
        "import effv2_kernels; effv2_kernels.{0}; import effv2_kernels.{0}",
        "import importlib; importlib.import_module('effv2_kernels.{0}')",
    ],
)
def test_a_function_is_not_replaced_by_its_submodule(first):
    names = ["optimize", "explain", "profile"]
    lines = [line for name in names for line in first.format(name).split("; ")]
    lines += ["import inspect, effv2_kernels", f"from effv2_kernels import {', '.join(names)}"]
    lines += [f"print({name} is effv2_kernels.{name} and inspect.isfunction({name}))" for name in names]
    assert python("\n".join(lines)).split() == ["True"] * len(names)


def test_a_user_can_still_replace_a_function(monkeypatch):
    replacement = lambda model: model  # noqa: E731
    monkeypatch.setattr(effv2_kernels, "optimize", replacement)
    assert effv2_kernels.optimize is replacement


def test_torch_and_numpy_are_all_that_it_needs():
    assert {Requirement(d).name for d in pyproject()["project"]["dependencies"]} == {"numpy", "torch"}
    blocked = "".join(f"sys.modules[{name!r}] = None;" for name in (*OPTIONAL, "timm", "torchvision"))
    code = f"""
import sys; {blocked}
import torch, effv2_kernels, effv2_kernels.ops
model = effv2_kernels.create_model("efficientformerv2_s0", img_size=64)
fast = effv2_kernels.optimize(model)
print(tuple(fast(torch.randn(1, 3, 64, 64)).shape))
str(effv2_kernels.explain(fast))
"""
    assert python(code).strip() == "(1, 1000)"


def test_pins_are_within_the_ranges():
    project = pyproject()
    ranges: dict[str, list[Requirement]] = {}
    lists = [project["project"]["dependencies"], project["build-system"]["requires"]]
    for text in chain(*lists, *project["project"]["optional-dependencies"].values()):
        requirement = Requirement(text)
        ranges.setdefault(requirement.name.lower().replace("_", "-"), []).append(requirement)
    pinned: dict[str, set[str]] = {"": set()}  # in the project's environment, and in others
    for file in sorted((ROOT / "requirements").glob("*.txt")):
        elsewhere = file.name in ("aarch64-site.txt", "oldest.txt")
        here = pinned.setdefault(file.name if elsewhere else "", set())
        for line in file.read_text().splitlines():
            if not line or line.startswith("#"):
                continue
            pin = Requirement(line)
            assert re.fullmatch(r"==[\d.]+", str(pin.specifier)), f"{file.name}: {line} is no exact version"
            if pin.marker and not pin.marker.evaluate(default_environment()):
                continue
            name = pin.name.lower().replace("_", "-")
            assert name not in here, f"{name} is pinned twice"
            here.add(name)
            version = str(pin.specifier).removeprefix("==")
            for allowed in ranges.get(name, []):
                assert allowed.specifier.contains(version), (
                    f"{file.name} pins {pin}, but {allowed} is allowed"
                )
    assert set(ranges) - pinned[""] == {"effv2-kernels"}


def test_extras_name_only_extras_that_exist():
    extras = pyproject()["project"]["optional-dependencies"]
    for requirements in extras.values():
        for requirement in map(Requirement, requirements):
            if requirement.name == "effv2_kernels":
                assert requirement.extras <= set(extras)


def sources(folder: Path) -> None:
    """Copy what git tracks or would track, so that a build sees neither old builds nor the environment."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel made of the source distribution, so that a file missing from the latter is found out.

    EFFV2_TEST_WHEEL: one that was made already, by `make wheel`.
    """
    if made := os.environ.get("EFFV2_TEST_WHEEL"):
        return Path(made)
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("output")
    sources(source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", output, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    (built,) = output.glob("*.whl")
    return built


@pytest.mark.thorough
def test_wheel_holds_what_is_needed_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packaged = {name for name in names if name.startswith("effv2_kernels/")}
    modules = [name for name in packaged if re.fullmatch(r"effv2_kernels/_native\.[\w-]+\.(so|pyd)", name)]
    assert len(modules) == 1, modules
    expected = {p.relative_to(ROOT).as_posix() for p in (ROOT / "effv2_kernels").rglob("*.py")}
    data = ("*.safetensors", "triton/tuned/*.json", "search/space/shipped/*.json")
    expected |= {
        p.relative_to(ROOT).as_posix() for kind in data for p in (ROOT / "effv2_kernels").rglob(kind)
    }
    assert {Path(name).suffix for name in expected} == {".py", ".safetensors", ".json"}
    typing = {f"effv2_kernels/{name}" for name in ("py.typed", "_native.pyi", "_cuda.pyi")}
    assert packaged == expected | set(modules) | typing
    others = {name.split("/")[0] for name in set(names) - packaged}
    assert others == {f"effv2_kernels-{effv2_kernels.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.thorough
def test_wheel_works_where_the_sources_are_not(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    code = """
import torch, effv2_kernels
from importlib.metadata import version
model = effv2_kernels.create_model("efficientformerv2_s0", img_size=64)
images = torch.randn(2, 3, 64, 64)
fast = effv2_kernels.optimize(model)
torch.testing.assert_close(fast(images), model(images).detach(), rtol=1e-4, atol=1e-5)
print(effv2_kernels.__file__, version("effv2_kernels") == effv2_kernels.__version__)
"""
    where, same_version = python(code, cwd=elsewhere, path=site).split()
    assert Path(where).is_relative_to(site)
    assert same_version == "True"


def test_the_license_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert pyproject()["project"]["license"] == "Apache-2.0"


def test_commands_are_modules_with_the_two_functions():
    from effv2_kernels.__main__ import COMMANDS

    for name in COMMANDS:
        module = importlib.import_module(f"effv2_kernels.cli.{name}")
        assert callable(module.add_arguments)
        assert callable(module.run)
