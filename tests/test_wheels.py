"""The scripts that build wheels and try them: which interpreters they take, what a wheel may not ask for."""

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import effv2_kernels

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def wheels(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("wheels")


@pytest.fixture
def try_wheels(wheels):
    return importlib.import_module("try_wheels")


@pytest.fixture
def debian_python(wheels):
    return importlib.import_module("debian_python")


@pytest.fixture
def python(wheels, tmp_path, monkeypatch):
    """Makes programs on PATH, or elsewhere, that answer as a Python does; there are no others."""
    monkeypatch.setattr(wheels, "BUILD", tmp_path / "build")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))

    def make(name, folder="bin", fails="", **changes):
        answer = {"version": [*map(int, name.split("."))], "implementation": "cpython"}
        answer |= {"free_threaded": False, "headers": True, "environments": True, **changes}
        path = tmp_path / folder / f"python{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        said = f"echo '{fails}' >&2; exit 127" if fails else f"echo '{json.dumps(answer)}'"
        path.write_text(f"#!/bin/sh\n{said}\n")
        path.chmod(0o755)
        return str(path)

    return make


def test_this_interpreter_answers(wheels):
    (found,), _ = wheels.find_interpreters([sys.executable])
    assert found.tag == f"cp{sys.version_info[0]}{sys.version_info[1]}"


def test_interpreters_on_path_come_before_those_of_pyenv(wheels, python):
    here = python("3.11")
    python("3.11", "pyenv/versions/3.11.9/bin")
    python("3.12", "pyenv/versions/3.12.9/bin")
    newest = python("3.12", "pyenv/versions/3.12.11/bin")
    python("3.12", "build/python3.12/usr/bin")
    shim = python("3.13", fails="pyenv: python3.13: command not found")
    behind = python("3.13", "pyenv/versions/3.13.0/bin")
    unpacked = python("3.14", "build/python3.14/usr/bin")
    found, left_out = wheels.find_interpreters()
    assert {i.version: i.path for i in found} == {
        "3.11": here,
        "3.12": newest,
        "3.13": behind,
        "3.14": unpacked,
    }
    assert shim not in [i.path for i in found]
    assert left_out == ["CPython 3.10, of which no python3.10 was found"]


def test_what_is_not_found_is_unpacked(wheels, debian_python, python, monkeypatch, capsys):
    def unpack(folder, version):
        assert folder.name == f"python{version}"
        if version == "3.14":
            return Path(python("3.14", "build/python3.14/usr/bin"))
        folder.mkdir(parents=True)
        raise SystemExit(f"apt-get failed:\nno package python{version}")

    for version in ("3.11", "3.12", "3.13"):
        python(version, headers=version != "3.13")
    monkeypatch.setattr(debian_python, "unpack", unpack)
    wheels.unpack_missing()
    assert [i.version for i in wheels.find_interpreters()[0]] == ["3.11", "3.12", "3.14"]
    assert [path.name for path in wheels.BUILD.iterdir()] == ["python3.14"]
    assert capsys.readouterr().out.splitlines() == [
        f"CPython {version} cannot be unpacked either: no package python{version}"
        for version in ("3.10", "3.13")
    ]
    monkeypatch.setattr(debian_python, "unpack", lambda *_: pytest.fail("it is there already"))
    python("3.10")
    python("3.13")
    wheels.unpack_missing()


def test_an_unpacked_interpreter_starts_on_its_own_library(debian_python, tmp_path, monkeypatch):
    """Its loader gets the name that it was called by, from which a Python finds its environment."""
    machine = f"{platform.machine()}-linux-gnu"

    def unpack(folder, packages, release):
        assert release == "testing"
        assert {"python3.14-venv", "libpython3.14-dev"} <= {*packages}
        for name, text in {
            "usr/lib64/ld-linux-some.so.2": '#!/bin/sh\nfor argument; do echo "$argument"; done\n',
            "usr/bin/python3.14": "the program",
            "usr/lib/python3.14/ensurepip/__init__.py": "place = sysconfig.get_config_var('WHEEL_PKG_DIR')\n",
            "usr/include/python3.14/pyconfig.h": f"#include <{machine}/python3.14/pyconfig.h>\n",
            f"usr/include/{machine}/python3.14/pyconfig.h": "#define HERE\n",
        }.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    monkeypatch.setattr(debian_python.debian, "unpack", unpack)
    root = tmp_path / "with a space"
    python = debian_python.unpack(root, "3.14")
    assert python == root / "usr/bin/python3.14"
    (tmp_path / "environment").symlink_to(python)
    done = subprocess.run(
        [tmp_path / "environment", "-c", "two words"], capture_output=True, text=True, check=True
    )
    library, program = f"{root}/usr/lib/{machine}", f"{root}/usr/bin/python3.14.program"
    assert done.stdout.splitlines() == [
        "--argv0",
        f"{tmp_path}/environment",
        "--library-path",
        library,
        program,
        "-c",
        "two words",
    ]
    assert (root / "usr/include/python3.14/pyconfig.h").read_text() == "#define HERE\n"
    module = (root / "usr/lib/python3.14/ensurepip/__init__.py").read_text()
    assert module == f"place = '{root}/usr/share/python-wheels'\n"


def test_other_releases_come_from_the_servers_of_this_machine(debian_python, tmp_path, monkeypatch):
    servers = "http://a.example/debian/ http://a.example/debian-security/ https://b.example/debian"
    (tmp_path / "apt-get").write_text("#!/bin/sh\nfor server in $SERVERS; do echo $server; done\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SERVERS", servers)
    monkeypatch.setattr(debian_python.debian, "KEYS", tmp_path)
    assert debian_python.debian.sources("testing").splitlines() == [
        f"deb [signed-by={tmp_path}] http://a.example/debian testing main",
        f"deb [signed-by={tmp_path}] https://b.example/debian testing main",
    ]
    monkeypatch.setenv("SERVERS", "")
    with pytest.raises(SystemExit, match="no server of Debian is known here"):
        debian_python.debian.sources("testing")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"headers": False}, "its C headers are missing"),
        ({"environments": False}, "its modules venv and ensurepip are missing"),
        ({"implementation": "pypy"}, "it is not the ordinary CPython"),
        ({"free_threaded": True}, "it is not the ordinary CPython"),
        ({"version": [3, 9]}, "CPython 3.9 is not one of 3.10, "),
        ({"fails": "no such version"}, "no such version"),
    ],
)
def test_an_interpreter_that_cannot_build_is_left_out_by_name(wheels, python, changes, reason):
    path = python("3.12", **changes)
    found, left_out = wheels.find_interpreters()
    assert not found
    assert [text for text in left_out if text.startswith(f"{path}: {reason}")]
    with pytest.raises(SystemExit, match=re.escape(f"{path}: {reason}")):
        wheels.find_interpreters([path])


def test_an_interpreter_that_is_not_there_is_an_error(wheels, tmp_path):
    with pytest.raises(SystemExit, match="No such file"):
        wheels.find_interpreters([str(tmp_path / "python3.12")])


def test_versions_are_those_that_the_package_and_public_runners_take(wheels):
    tomllib = pytest.importorskip("tomllib", reason="tomllib needs Python 3.11")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tags = [f"cp{version.replace('.', '')}-*" for version in wheels.VERSIONS]
    assert pyproject["tool"]["cibuildwheel"]["build"] == tags
    assert pyproject["project"]["requires-python"] == f">={wheels.VERSIONS[0]}"


def test_the_glibc_that_a_wheel_needs(wheels):
    name = "p-0.2.0-cp312-cp312-{}.whl".format
    assert wheels.oldest_glibc(name("manylinux2014_aarch64.manylinux_2_17_aarch64")) == (2, 17)
    assert wheels.oldest_glibc(name("manylinux_2_28_x86_64.manylinux_2_26_x86_64")) == (2, 26)
    assert wheels.oldest_glibc(name("manylinux_2_34_aarch64")) > (2, 28)
    assert wheels.oldest_glibc(name("linux_aarch64")) > (2, 28)


def test_a_symbol_without_a_version_is_found(wheels, tmp_path):
    if not (compiler := shutil.which("cc")):
        pytest.skip("there is no C compiler")
    source, module, wheel = (tmp_path / name for name in ("module.c", "module.so", "module.whl"))
    source.write_text(
        "char* getenv(const char*); int PyErr_Occurred(void); int of_a_newer_glibc(void);"
        'int f(void) { return getenv("") && PyErr_Occurred() && of_a_newer_glibc(); }'
    )
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", module], check=True)
    with zipfile.ZipFile(wheel, "w") as files:
        files.write(module, "package/module.so")
    assert wheels.unversioned(wheel) == ["of_a_newer_glibc"]


def test_the_libraries_of_a_toolchain_are_asked_for(tmp_path):
    done = subprocess.run(
        ["cmake", "-S", ROOT, "-B", tmp_path, f"-DCMAKE_TOOLCHAIN_FILE={ROOT}/cmake/x86_64-glibc-2.28.cmake"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "EFFV2_GLIBC must be a folder" in done.stderr


def test_cuda_is_found_among_requirements(try_wheels):
    here = 'platform_system == "Linux"'
    assert try_wheels.brings_cuda([f"nvidia-cublas-cu12 (==12.1.3.1) ; {here}"]) == "nvidia-cublas-cu12"
    assert try_wheels.brings_cuda(["filelock", f"cuda-bindings<14,>=13; {here}"]) == "cuda-bindings"
    assert try_wheels.brings_cuda(["sympy", 'nvidia-nccl-cu12==2; platform_system == "Windows"']) is None
    assert try_wheels.brings_cuda(["filelock", 'nvidia-cudnn==9; extra == "gpu"']) is None


def test_the_oldest_that_are_tried_are_the_oldest_that_are_allowed():
    tomllib = pytest.importorskip("tomllib", reason="tomllib needs Python 3.11")
    allowed = map(
        Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    )
    lines = (ROOT / "requirements" / "oldest.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    for requirement in allowed:
        least = Version(str(requirement.specifier).removeprefix(">="))
        oldest = [
            Version(str(pin.specifier).removeprefix("=="))
            for pin in pins
            if pin.name == requirement.name and pin.marker.evaluate({"python_version": "3.10"})
        ]
        assert [version.release[:2] for version in oldest] == [least.release]


def test_the_changelog_has_the_version():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    dated = [heading.split(" - ") for heading in headings if heading != "Unreleased"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in dated)
    versions = [Version(version) for version, _ in dated]
    assert versions == sorted(versions, reverse=True)
    assert versions[0] == Version(effv2_kernels.__version__)


def test_what_was_edited_during_a_build_is_newer_than_what_it_compiled(wheels, tmp_path):
    """Whatever time the archive gives it; other files are as old as before."""
    for folder, edited in (("old", "1"), ("new", "2")):
        (tmp_path / folder / "csrc").mkdir(parents=True)
        for name, text in (("edited", edited), ("kept", "the same")):
            file = tmp_path / folder / "csrc" / name
            file.write_text(text)
            os.utime(file, (1000, 1000) if folder == "old" else (2000, 2000))
    (tmp_path / "new" / "added").write_text("")
    os.utime(tmp_path / "new" / "added", (2000, 2000))
    before = time.time() - 5
    wheels._keep_times(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "new" / "csrc" / "kept").stat().st_mtime == 1000
    assert (tmp_path / "new" / "csrc" / "edited").stat().st_mtime > before
    assert (tmp_path / "new" / "added").stat().st_mtime > before
