"""Build wheels of manylinux_2_28 in dist/, for x86-64 and 64-bit Arm and for every CPython that is found.

python scripts/wheels.py [--architectures x86_64 aarch64] [--pythons PYTHON ...] [--cuda]

A version that is not found is unpacked, where Debian's testing release has it (debian_python.py).
They are made of the source distribution, which comes into dist/ as well. The engine, which knows no Python,
is compiled once for each architecture: for x86-64 by the system's compiler, as by `make build`, but linked
against an old glibc (old_glibc.py); for 64-bit Arm by Zig's. Arm's are built with the headers of the Python
that runs here: of what pyconfig.h says about a machine, nothing that a module uses differs between the two.
All of it stays in build/wheels/. auditwheel and twine have the last word.

--cuda: those for x86-64 with kernels for NVIDIA GPUs as well, in dist/cuda/. Which CUDA compiled them stands
in their version, as in PyTorch's: 0.2.0+cu130. PyPI takes no such versions.
"""

from __future__ import annotations

import argparse
import filecmp
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import debian_python
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "wheels"
DIST = ROOT / "dist"
CUDA_DIST = DIST / "cuda"
CUDA_WHEEL_BYTES = 60_000_000  # at most
TOOLCHAINS = {"x86_64": "x86_64-glibc-2.28.cmake", "aarch64": "aarch64-linux.cmake"}
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

# Asked of each interpreter.
QUESTION = """
import importlib.util, json, os, sys, sysconfig
include = sysconfig.get_path("include")
print(json.dumps({
    "version": list(sys.version_info[:2]),
    "implementation": sys.implementation.name,
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "headers": os.path.exists(os.path.join(include, "Python.h")),
    "environments": all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")),
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A CPython that wheels can be built with."""

    path: str
    version: str  # 3.12

    @property
    def tag(self) -> str:
        return f"cp{self.version.replace('.', '')}"


def main() -> int:
    args = _arguments()
    machine = platform.machine()
    if (sys.platform, machine) != ("linux", "x86_64"):
        raise SystemExit(f"wheels are built on x86-64 Linux, and this is {sys.platform} on {machine}")
    if not args.pythons:
        unpack_missing()
    interpreters, left_out = find_interpreters(args.pythons)
    for reason in left_out:
        print(f"left out: {reason}")
    if not interpreters:
        raise SystemExit(f"no CPython of {', '.join(VERSIONS)} with headers and venv was found")
    source = unpack_source()
    made = []
    for architecture in ["x86_64"] if args.cuda else args.architectures:
        made += build_wheels(architecture, interpreters, source, args.cuda)
    # What an index would refuse of their metadata and names.
    run([sys.executable, "-m", "twine", "check", "--strict", *DIST.glob("*.tar.gz"), *made])
    for wheel in made:
        print(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 1e6:.1f} MB")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--architectures", nargs="+", choices=TOOLCHAINS, default=list(TOOLCHAINS), metavar="NAME"
    )
    parser.add_argument("--pythons", nargs="+", metavar="PYTHON", help="default: all that are found")
    parser.add_argument("--cuda", action="store_true", help="for x86-64, with kernels for NVIDIA GPUs")
    return parser.parse_args()


def find_interpreters(pythons: list[str] | None = None) -> tuple[list[Interpreter], list[str]]:
    """Those that wheels can be built with, one of each version, and why others are left out.

    Without a list: pythonX.Y on PATH, or else what pyenv has installed of that version, or else what
    unpack_missing() has. One that is named and cannot build ends the program.
    """
    found: dict[str, Interpreter] = {}
    left_out = []
    for version in VERSIONS if pythons is None else pythons:
        candidates = [version] if pythons else _candidates(version)
        reasons = []
        for candidate in candidates:
            answer = _ask(candidate)
            if isinstance(answer, Interpreter):
                found.setdefault(answer.version, answer)
                break
            reasons.append(answer)
        else:
            if pythons:
                raise SystemExit(f"no wheel can be built with {'; '.join(reasons)}")
            left_out.append("; ".join(reasons) or f"CPython {version}, of which no python{version} was found")
    return list(found.values()), left_out


def _candidates(version: str) -> list[str]:
    name = f"python{version}"
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    installed = (root / "versions").glob(f"{version}.*/bin/{name}")
    newest_first = sorted(installed, key=lambda path: int(path.parts[-3].split(".")[2]), reverse=True)
    on_path = shutil.which(name)
    unpacked = _unpacked(version) / "usr" / "bin" / name
    return [
        *([on_path] if on_path else []),
        *map(str, newest_first),
        *([str(unpacked)] if unpacked.exists() else []),
    ]


def _unpacked(version: str) -> Path:
    return BUILD / f"python{version}"


def unpack_missing() -> None:
    """Of versions of which no interpreter is found, those that another release of Debian has are unpacked."""
    for version in VERSIONS:
        if any(isinstance(_ask(candidate), Interpreter) for candidate in _candidates(version)):
            continue
        try:
            debian_python.unpack(_unpacked(version), version)
        except (SystemExit, OSError, ValueError, subprocess.CalledProcessError) as error:
            shutil.rmtree(_unpacked(version), ignore_errors=True)
            reason = (str(error) or type(error).__name__).splitlines()[-1]
            print(f"CPython {version} cannot be unpacked either: {reason}")


def _ask(python: str) -> Interpreter | str:
    """What the interpreter says of itself, or why no wheel can be built with it."""
    try:
        done = subprocess.run([python, "-c", QUESTION], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{python}: {error.strerror}"
    if done.returncode:
        return f"{python}: {(done.stderr.strip() or 'it does not start').splitlines()[-1]}"
    answer = json.loads(done.stdout)
    version = ".".join(map(str, answer["version"]))
    if answer["implementation"] != "cpython" or answer["free_threaded"]:
        return f"{python}: it is not the ordinary CPython"
    if version not in VERSIONS:
        return f"{python}: CPython {version} is not one of {', '.join(VERSIONS)}"
    if not answer["headers"]:
        return f"{python}: its C headers are missing"
    if not answer["environments"]:
        return f"{python}: its modules venv and ensurepip are missing"
    return Interpreter(python, version)


def unpack_source() -> Path:
    """The folder of the source distribution, built anew."""
    for old in DIST.glob("*.tar.gz"):
        old.unlink()
    run([sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", DIST, ROOT])
    (archive,) = DIST.glob("*.tar.gz")
    folder, fresh = BUILD / "source", BUILD / "unpacked"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    with tarfile.open(archive) as files:
        files.extractall(fresh, filter="data")
    (inner,) = fresh.iterdir()
    # Of one name whatever the version, so that what was compiled of files that have not changed is kept.
    place = folder / "effv2_kernels"
    _keep_times(place, inner)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return inner.rename(place)


def _keep_times(old: Path, new: Path) -> None:
    """Files that are as they were keep their times; the others are of now.

    The archive has the times of edits, and what was edited while an earlier wheel was built would seem older
    than what that compiled.
    """
    for path in new.rglob("*"):
        before = old / path.relative_to(new)
        if not path.is_file():
            continue
        if before.is_file() and filecmp.cmp(path, before, shallow=False):
            shutil.copystat(before, path)
        else:
            os.utime(path)


def build_wheels(
    architecture: str, interpreters: list[Interpreter], source: Path, cuda: bool = False
) -> list[Path]:
    """The wheels of an architecture, in dist/ or dist/cuda/, where none of it are left from before."""
    dist = CUDA_DIST if cuda else DIST
    for old in dist.glob(f"*manylinux*_{architecture}.whl"):
        old.unlink()
    folder = BUILD / architecture
    environment = {
        **os.environ,
        "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count())),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **_for_toolchain(architecture),
        "EFFV2_CUDA": "1" if cuda else "",
    }
    engine = folder / "engine"
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / TOOLCHAINS[architecture]}"
    configure: list[str | Path] = ["cmake", "-S", source, "-B", engine, toolchain]
    with_cuda = f"-DEFFV2_CUDA={'ON' if cuda else 'OFF'}"
    run([*configure, "-DCMAKE_BUILD_TYPE=Release", "-DEFFV2_PYTHON=OFF", with_cuda], environment)
    libraries = ["effv2_engine", "effv2_counting", *(["effv2_cuda"] if cuda else [])]
    run(["cmake", "--build", engine, "--target", *libraries], environment)

    unrepaired = folder / "unrepaired"
    shutil.rmtree(unrepaired, ignore_errors=True)
    for interpreter in interpreters:
        arguments = [toolchain, f"-DEFFV2_ENGINE={engine}"]
        if architecture != platform.machine():
            suffix = f".cpython-{interpreter.tag[2:]}-{architecture}-linux-gnu.so"
            arguments += [f"-DPYTHON_MODULE_EXTENSION={suffix}", *_debian_headers(architecture)]
            environment["_PYTHON_HOST_PLATFORM"] = f"linux-{architecture}"
        environment["CMAKE_ARGS"] = " ".join(arguments)
        python = build_environment(interpreter)
        run([python, "-m", "build", "--wheel", "--no-isolation", "--outdir", unrepaired, source], environment)
    return [repair(wheel, architecture, environment, dist) for wheel in sorted(unrepaired.glob("*.whl"))]


def _for_toolchain(architecture: str) -> dict[str, str]:
    """What the toolchain file reads from the environment."""
    if architecture == "x86_64":
        folder, script = BUILD / "glibc", ROOT / "scripts" / "old_glibc.py"
        done = folder / "done"
        if not done.exists() or done.stat().st_mtime < script.stat().st_mtime:
            run([sys.executable, script, folder])
            done.touch()
        return {"EFFV2_GLIBC": str(folder)}
    return {"EFFV2_ZIG": str(Path(sysconfig.get_path("purelib"), "ziglang", "zig"))}


def _debian_headers(architecture: str) -> list[str]:
    """CMake's arguments for Debian's Python, whose pyconfig.h includes that of the architecture."""
    native = Path("/usr/include", f"{platform.machine()}-linux-gnu")
    if not native.exists():
        return []
    folder = BUILD / architecture / "include"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / f"{architecture}-linux-gnu"
    link.unlink(missing_ok=True)
    link.symlink_to(native)
    return [f"-DCMAKE_CXX_FLAGS=-idirafter{folder}"]


def build_environment(interpreter: Interpreter) -> Path:
    """The interpreter of an environment that has what requirements/build.txt lists."""
    requirements = ROOT / "requirements" / "build.txt"
    folder = BUILD / interpreter.tag / "build"
    return environment_with(interpreter, folder, ["--requirement", requirements], requirements.read_text())


def environment_with(
    interpreter: Interpreter, folder: Path, packages: list[str | Path], description: str
) -> Path:
    """The interpreter of an environment with packages; made anew unless it is one of this description."""
    python, stamp = folder / "bin" / "python", folder / "description"
    if not stamp.exists() or stamp.read_text() != description:
        shutil.rmtree(folder, ignore_errors=True)
        run([interpreter.path, "-m", "venv", folder])
        run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
        stamp.write_text(description)
    return python


def repair(wheel: Path, architecture: str, environment: dict[str, str], dist: Path) -> Path:
    """The wheel as auditwheel names it, in a folder, after a look at what it asks for."""
    # auditwheel knows by name the platforms of its own machine alone.
    platform_tag = f"manylinux_2_28_{architecture}" if architecture == platform.machine() else "auto"
    before = set(dist.glob("*.whl"))
    run(["auditwheel", "repair", "--plat", platform_tag, "--wheel-dir", dist, wheel], environment)
    (made,) = set(dist.glob("*.whl")) - before
    if dist == CUDA_DIST and made.stat().st_size > CUDA_WHEEL_BYTES:
        raise SystemExit(f"{made.name} has {made.stat().st_size} bytes, and {CUDA_WHEEL_BYTES} are the most")
    if oldest_glibc(made.name) > (2, 28):
        raise SystemExit(f"{made.name} needs a glibc newer than 2.28: auditwheel show {made}")
    if nameless := unversioned(made):
        raise SystemExit(
            f"{made.name} asks for symbols that glibc 2.28 lacks, and would not load there: "
            + ", ".join(nameless)
        )
    return made


def oldest_glibc(name: str) -> tuple[int, int]:
    """The oldest glibc that a wheel runs with, by the tags in its name; (99, 0) where these say nothing."""
    found = re.findall(r"manylinux_(\d+)_(\d+)_", name)
    return min(((int(major), int(minor)) for major, minor in found), default=(99, 0))


def unversioned(wheel: Path) -> list[str]:
    """Symbols that its module takes from wherever they are, in any version, other than Python's own.

    A linker leaves those so that it did not find; auditwheel looks at versions alone.
    """
    names: set[str] = set()
    with zipfile.ZipFile(wheel) as files:
        for member in files.namelist():
            if not member.endswith(".so"):
                continue
            elf = ELFFile(io.BytesIO(files.read(member)))
            versions = elf.get_section_by_name(".gnu.version")
            for place, symbol in enumerate(elf.get_section_by_name(".dynsym").iter_symbols()):
                bare = versions is None or versions.get_symbol(place)["ndx"] in (
                    "VER_NDX_LOCAL",
                    "VER_NDX_GLOBAL",
                )
                missing = symbol["st_shndx"] == "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL"
                if missing and bare and not symbol.name.startswith(("Py", "_Py")):
                    names.add(symbol.name)
    return sorted(names)


def run(command: list[Any], environment: dict[str, str] | None = None) -> None:
    """Run a command; where it fails, say which, with what it printed."""
    done = subprocess.run(
        list(map(str, command)),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-6000:]}")


if __name__ == "__main__":
    sys.exit(main())
