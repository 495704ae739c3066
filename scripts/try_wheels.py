"""Install each wheel of dist/ that this machine can run, and hold it there to what it must compute.

python scripts/try_wheels.py [--pythons PYTHON ...] [--cuda-builds]

An environment has a wheel, PyTorch, NumPy and pytest: once the oldest that are supported, which
requirements/oldest.txt pins, and once those that the project is developed with (requirements/torch.txt). In
each, every block and networks give the bits that are recorded, and networks of random weights what float64
gives. A PyTorch that asks for CUDA's libraries, which are gigabytes, is left out, and named.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from wheels import (
    BUILD,
    DIST,
    ROOT,
    Interpreter,
    build_environment,
    environment_with,
    find_interpreters,
)

AGES = {"oldest": ROOT / "requirements" / "oldest.txt", "newest": ROOT / "requirements" / "torch.txt"}
TESTS = ("tests/test_digests.py", "tests/test_network.py::test_logits")
CUDA = ("nvidia-", "cuda-")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pythons", nargs="+", metavar="PYTHON", help="default: all that are found")
    parser.add_argument("--cuda-builds", action="store_true", help="PyTorch with CUDA's libraries as well")
    args = parser.parse_args()
    tried = 0
    for interpreter in find_interpreters(args.pythons)[0]:
        wheel = wheel_for(interpreter)
        for age, requirements in AGES.items():
            name = f"CPython {interpreter.version} with the {age} PyTorch"
            if reason := why_not(interpreter, requirements, args.cuda_builds):
                print(f"left out: {name}: {reason}", flush=True)
                continue
            print(f"== {name}: {wheel.name}", flush=True)
            try_wheel(wheel, environment(interpreter, age, requirements))
            tried += 1
    if not tried:
        raise SystemExit(
            "no wheel was tried: there is no CPU build of PyTorch for any CPython that was found"
        )
    return 0


def wheel_for(interpreter: Interpreter, dist: Path = DIST) -> Path:
    """The interpreter's wheel in dist/."""
    found = list(dist.glob(f"*-{interpreter.tag}-*manylinux*_{platform.machine()}.whl"))
    if len(found) != 1:
        target = "wheels" if dist == DIST else "wheel-cuda"
        many = f"{len(found)} wheels for CPython {interpreter.version}"
        raise SystemExit(f"{dist.relative_to(ROOT)}/ has {many}: run make {target}")
    return found[0]


def why_not(interpreter: Interpreter, requirements: Path, cuda_builds: bool) -> str | None:
    """Why PyTorch as it is pinned for this version of Python is not to be installed, if so."""
    options = [
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--only-binary=:all:",
        "--quiet",
        "--report",
        "-",
    ]
    # Of its environment, since not every interpreter has pip itself.
    python = build_environment(interpreter)
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", *options]
    done = subprocess.run(
        [*command, "--requirement", requirements], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return (done.stderr.strip() or "pip says nothing").splitlines()[-1]
    found = {item["metadata"]["name"]: item["metadata"] for item in json.loads(done.stdout)["install"]}
    if "torch" not in found:
        return f"{requirements.name} pins none for this version of Python"
    needed = brings_cuda(found["torch"].get("requires_dist", []))
    if needed and not cuda_builds:
        return f"torch {found['torch']['version']} asks for {needed} and more of CUDA"
    return None


def brings_cuda(requirements: list[str]) -> str | None:
    """The first package of CUDA among the requirements of a wheel that hold on this machine."""
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name.startswith(CUDA):
            return requirement.name
    return None


def environment(interpreter: Interpreter, age: str, requirements: Path) -> Path:
    """The interpreter of an environment with PyTorch, NumPy and pytest as they are pinned."""
    pytest = next(
        line
        for line in (ROOT / "requirements" / "test.txt").read_text().splitlines()
        if line.startswith("pytest==")
    )
    packages: list[str | Path] = ["--requirement", requirements, pytest]
    description = f"{requirements.read_text()}{pytest}\n"
    return environment_with(interpreter, BUILD / interpreter.tag / age, packages, description)


def try_wheel(wheel: Path, python: Path) -> None:
    """Install the wheel and run the tests against it."""
    install(wheel, python)
    run_in(python, "-m", "pip", "--disable-pip-version-check", "check")
    options = ["-p", "no:cacheprovider", "--quiet", "-m", "not thorough", "--rootdir", ROOT]
    run_in(python, "-m", "pytest", *options, "-c", ROOT / "pyproject.toml", *(ROOT / test for test in TESTS))


def install(wheel: Path, python: Path) -> None:
    """Install the wheel, and nothing that it needs, into the interpreter's environment."""
    pip = ["-m", "pip", "--disable-pip-version-check"]
    run_in(python, *pip, "install", "--quiet", "--force-reinstall", "--no-deps", wheel)
    where = str(python.parents[1])
    run_in(python, "-c", f"import effv2_kernels as e; assert e.__file__.startswith({where!r}), e.__file__")


def run_in(python: Path, *arguments: str | Path) -> None:
    """Not from the root, whose package would be found before the installed one."""
    done = subprocess.run([python, *arguments], cwd=python.parents[1], check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, (python, *arguments)))} failed")


if __name__ == "__main__":
    sys.exit(main())
