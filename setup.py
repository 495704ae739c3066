"""Hands the build to CMake; everything else about the package is in pyproject.toml."""

from setuptools import setup

setup(cmake_source_dir=".")
