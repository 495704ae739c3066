"""Unpack Debian packages, of any architecture, with all that they need, into a folder; installs nothing.

python scripts/debian.py FOLDER PACKAGE[:ARCHITECTURE] ...

Needs apt-get and dpkg-deb, the machine's list of Debian servers, and no rights. FOLDER is made anew.
FOLDER/lacking has links to the shared libraries among it that this machine lacks: the LD_LIBRARY_PATH of
programs that are run as they are. The machine's own C library goes with its own loader alone.
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
    link_lacking(args.folder)
    print(f"unpacked {len(found)} packages in {args.folder}")
    return 0


def link_lacking(folder: Path) -> None:
    """Links, in ``folder/lacking``, to the shared libraries in it that the machine's loader does not find."""
    lacking = folder / "lacking"
    lacking.mkdir()
    tool = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    if not tool:
        raise SystemExit("ldconfig is missing: it tells which libraries there are")
    listed = subprocess.run([tool, "-p"], capture_output=True, text=True, check=True).stdout
    known = {line.split()[0] for line in listed.splitlines() if "=>" in line}
    for library in folder.glob(f"usr/lib/{platform.machine()}-linux-gnu/*.so.*"):
        if library.name not in known:
            (lacking / library.name).symlink_to(library.resolve())


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
