"""Unpack a CPython with its C headers from a release of Debian that has it; installs nothing.

python scripts/debian_python.py FOLDER VERSION [--release NAME]

For versions that the machine's own Debian lacks. FOLDER/usr/bin/pythonVERSION starts it on the C library that
came with it, and makes environments as any other.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

import debian

START = """#!/bin/sh
root='{root}'
exec "$root/{loader}" --argv0 "$0" --library-path "$root/usr/lib/{machine}-linux-gnu" "$root/{program}" "$@"
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("version", metavar="VERSION", help="3.14")
    parser.add_argument("--release", metavar="NAME", default="testing", help="of Debian; default: testing")
    args = parser.parse_args()
    print(f"unpacked {unpack(args.folder, args.version, args.release)}")
    return 0


def unpack(folder: Path, version: str, release: str = "testing") -> Path:
    """The interpreter, in a folder made anew."""
    name, machine = f"python{version}", platform.machine()
    root = folder.resolve()
    # The last two are what PyTorch asks of a system.
    debian.unpack(root, [f"{name}-venv", f"lib{name}-dev", "libstdc++6", "libgomp1"], release)
    (loader,) = root.glob("usr/lib*/ld-linux-*.so.*")
    python = root / "usr" / "bin" / name
    program = python.rename(python.with_name(f"{name}.program"))
    start = START.format(
        root=root, machine=machine, loader=loader.relative_to(root), program=program.relative_to(root)
    )
    python.write_text(start)
    python.chmod(0o755)
    # pip, for environments: in the folder, not where the system of this release would have it.
    module = root / "usr" / "lib" / name / "ensurepip" / "__init__.py"
    place = "sysconfig.get_config_var('WHEEL_PKG_DIR')"
    module.write_text(module.read_text().replace(place, repr(f"{root}/usr/share/python-wheels")))
    own = root / "usr" / "include" / f"{machine}-linux-gnu" / name / "pyconfig.h"
    (root / "usr" / "include" / name / "pyconfig.h").write_bytes(own.read_bytes())
    return python


if __name__ == "__main__":
    sys.exit(main())
