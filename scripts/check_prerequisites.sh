#!/bin/sh
# Names what the build needs and does not find, each with the command that installs it.
# usage: check_prerequisites.sh PYTHON
set -u
python=$1
missing=0

# install APT DNF BREW: the command for the package manager of this machine
install() {
    if command -v apt-get >/dev/null 2>&1; then echo "sudo apt-get install $1"
    elif command -v dnf >/dev/null 2>&1; then echo "sudo dnf install $2"
    elif command -v brew >/dev/null 2>&1; then echo "brew install $3"
    else echo "install $1 with the package manager of your system"
    fi
}

lacks() {
    missing=1
    printf 'missing: %s\n         %s\n' "$1" "$2" >&2
}

if ! command -v "$python" >/dev/null 2>&1; then
    lacks "Python 3.10 or newer, as '$python'" \
        "$(install 'python3 python3-venv python3-dev' python3-devel python), or make PYTHON=/path/to/python"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    lacks "Python 3.10 or newer; '$python' is $("$python" -V 2>&1)" "make PYTHON=/path/to/a/newer/python"
else
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        lacks "Python's venv module" "$(install python3-venv python3 python)"
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
        lacks "Python's C headers" "$(install python3-dev python3-devel python)"
fi

if [ -n "${CXX:-}" ]; then
    command -v "${CXX%% *}" >/dev/null 2>&1 ||
        lacks "the C++ compiler that CXX names, '$CXX'" "set CXX to one that exists, or unset it"
elif ! { command -v c++ || command -v g++ || command -v clang++; } >/dev/null 2>&1; then
    lacks "a C++ compiler" "$(install g++ gcc-c++ gcc)"
fi

command -v cmake >/dev/null 2>&1 || lacks "CMake" "$(install cmake cmake cmake)"

exit $missing
