"""Make a folder to link modules against an old glibc, so that they load with it and with every newer one.

python scripts/old_glibc.py FOLDER [--version 2.28]

A linker takes each symbol in the newest version that it finds, so that a module linked on a new system asks
for a new system. Zig, the PyPI package ziglang, carries the list of symbols of every glibc, and makes
libraries of it that hold nothing else: all that a linker needs. For x86-64, with the system's own compiler;
how it is told stands in cmake/x86_64-glibc-2.28.cmake.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# A flag of glibc 2.32 that headers of GCC's C++ library read: false means that locks are taken, as before it.
SINGLE_THREADED = '__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;\n'

# Of the C++ library that is linked in, nothing may be seen, or other modules could come to use it.
EXPORTS = "{ global: PyInit_*; local: *; };\n"

# What -lc stands for, as in glibc itself. libld.so.2 is the dynamic linker; threads are apart still.
LIBC = "GROUP ( libc.so.6 libc_nonshared.a AS_NEEDED ( libpthread.so.0 libld.so.2 ) )\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--version", default="2.28", help="default: 2.28")
    args = parser.parse_args()
    make(args.folder, args.version)
    return 0


def make(folder: Path, version: str) -> None:
    """Make the folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    target = f"x86_64-linux-gnu.{version}"
    (folder / "exports.map").write_text(EXPORTS)
    (folder / "single_threaded.c").write_text(SINGLE_THREADED)
    with tempfile.TemporaryDirectory() as cache:
        # A cache of its own holds these libraries and no others.
        environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}

        def zig(*arguments: str | Path) -> None:
            command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-fPIC", *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"Zig cannot make the libraries of glibc {version}:\n{done.stderr}")

        zig("-c", folder / "single_threaded.c", "-o", folder / "single_threaded.o")
        zig("-shared", folder / "single_threaded.o", "-o", Path(cache) / "linked.so")
        for name in ("lib*.so.*", "libc_nonshared.a"):
            for file in Path(cache, "o").glob(f"*/{name}"):
                shutil.copy(file, folder)
    for name in ("libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0"):
        (folder / f"{name.split('.')[0]}.so").symlink_to(name)
    (folder / "libc.so").write_text(LIBC)


if __name__ == "__main__":
    sys.exit(main())
