"""The native part of examples/android: it compiles against jni.h, and has what Kotlin declares."""

import os
import re
import subprocess
from pathlib import Path

import c_library
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "android"


def jni_headers():
    """Where jni.h is: Android's, which `make jni-headers` unpacks, or a JDK's."""
    folders = [ROOT / "build" / "jni" / "usr" / "include" / "android" / "nativehelper"]
    if "JAVA_HOME" in os.environ:
        folders.append(Path(os.environ["JAVA_HOME"]) / "include")
    found = [folder for folder in folders if (folder / "jni.h").exists()]
    if not found:
        pytest.skip("there is no jni.h: `make jni-headers` unpacks it from a package of Debian's")
    return found[0]


def run(*command):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_native_part(tmp_path):
    headers = jni_headers()
    prefix = tmp_path / "prefix"
    run("cmake", "--install", c_library.BUILD, "--component", "c_api", "--prefix", prefix)
    flags = f"-isystem {headers} -isystem {headers / 'linux'} -Werror -pedantic"
    options = (f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_C_FLAGS={flags}")
    run("cmake", "-S", EXAMPLE, "-B", tmp_path / "build", *options)
    run("cmake", "--build", tmp_path / "build")
    lines = run("nm", "-D", "--defined-only", tmp_path / "build" / "libeffv2_jni.so").splitlines()
    exported = {line.split()[-1] for line in lines}
    kotlin = (EXAMPLE / "Classifier.kt").read_text(encoding="utf-8")
    (package,) = re.findall(r"^package (\S+)$", kotlin, re.MULTILINE)
    declared = re.findall(r"external fun (\w+)", kotlin)
    assert len(declared) == 4
    assert exported == {f"Java_{package.replace('.', '_')}_Classifier_{name}" for name in declared}
