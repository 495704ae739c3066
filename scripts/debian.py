"""Unpack Debian packages, of any architecture, with all that they need, into a folder; installs nothing.

python scripts/debian.py FOLDER PACKAGE[:ARCHITECTURE] ... [--release NAME]

Needs apt-get and dpkg-deb, the machine's list of Debian servers, and no rights. FOLDER is made anew. Packages
are of the machine's release of Debian, or of another one. FOLDER/lacking has links to the shared libraries
among them that this machine lacks: the LD_LIBRARY_PATH of programs that are run as they are. The machine's
own C library goes with its own loader alone.
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

KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

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
    parser.add_argument(
        "--release", metavar="NAME", help="of Debian: trixie, testing; default: the machine's"
    )
    args = parser.parse_args()
    print(f"unpacked {unpack(args.folder, args.packages, args.release)} packages in {args.folder}")
    return 0


def unpack(folder: Path, packages: list[str], release: str | None = None) -> int:
    """How many packages were unpacked in a folder made anew: these, and what they need."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise SystemExit(f"{tool} is missing: this needs Debian, or a system made of it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as state:
        found = download(Path(state), packages, release)
        for package in found:
            subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
    link_lacking(folder)
    return len(found)


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


def download(state: Path, packages: list[str], release: str | None) -> list[Path]:
    """The files of the packages, and of what they need, of the architectures that are asked for."""
    native = ARCHITECTURES.get(platform.machine(), "amd64")
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    configuration = state / "apt.conf"
    configuration.write_text(CONFIGURATION.format(state=state, native=native))
    if release:
        (state / "sources.list").write_text(sources(release))
        with configuration.open("a") as file:
            file.write(f'Dir::Etc::sourcelist "{state}/sources.list";\nDir::Etc::sourceparts "-";\n')
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


def sources(release: str) -> str:
    """Where another release of Debian is had: from the machine's servers, with signatures that it trusts."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    servers = {uri.rstrip("/") for uri in known if uri.rstrip("/").endswith("/debian")}
    if not servers:
        raise SystemExit(
            f"no server of Debian is known here, for packages of its {release}: see sources.list(5)"
        )
    signed = f"[signed-by={KEYS}] " if KEYS.exists() else ""
    return "".join(f"deb {signed}{server} {release} main\n" for server in sorted(servers))


if __name__ == "__main__":
    sys.exit(main())
