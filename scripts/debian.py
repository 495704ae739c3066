"""Unpack Debian packages, of any architecture, with all that they need, into a folder; installs nothing.

python scripts/debian.py FOLDER PACKAGE[:ARCHITECTURE] ...

Needs apt-get and dpkg-deb, the machine's list of Debian servers, and no rights. FOLDER is made anew.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

# A state of its own, in which no package is installed.
CONFIGURATION = """
Dir::State "{state}";
Dir::State::status "{state}/status";
Dir::Cache "{state}/cache";
APT::Architecture "{native}";
APT::Architectures {{ "amd64"; "arm64"; }};
APT::Sandbox::User "";
APT::Install-Recommends "false";
Acquire::Languages "none";
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("packages", metavar="PACKAGE", nargs="+")
    args = parser.parse_args()
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise SystemExit(f"{tool} is missing: this needs Debian, or a system made of it")
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as state:
        found = download(Path(state), args.packages)
        for package in found:
            subprocess.run(["dpkg-deb", "--extract", package, args.folder], check=True)
    print(f"unpacked {len(found)} packages in {args.folder}")
    return 0


def download(state: Path, packages: list[str]) -> list[Path]:
    """The files of the packages, and of what they need, of the architectures that are asked for."""
    native = ARCHITECTURES.get(platform.machine(), "amd64")
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    configuration = state / "apt.conf"
    configuration.write_text(CONFIGURATION.format(state=state, native=native))
    environment = {**os.environ, "APT_CONFIG": str(configuration)}

    def apt(*arguments: str) -> None:
        done = subprocess.run(
            ["apt-get", "--quiet", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"apt-get {' '.join(arguments)} failed:\n{done.stderr or done.stdout}")

    apt("update")
    apt("install", "--yes", "--download-only", *packages)
    wanted = {package.partition(":")[2] or native for package in packages} | {"all"}
    files = sorted((state / "cache/archives").glob("*.deb"))
    return [file for file in files if file.stem.rpartition("_")[2] in wanted]


if __name__ == "__main__":
    sys.exit(main())
