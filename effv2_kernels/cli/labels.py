"""Names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from effv2_kernels.errors import InputError


def read(path: str) -> list[str]:
    """The names in a text file, one class per line. Raises InputError where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the labels {path!r} cannot be read ({error}); give a text file.") from error


def imagenet() -> list[str] | None:
    """The names of ImageNet's 1000 classes from timm's data files; None where timm is not installed.

    Read from the files and not through timm, whose import takes seconds.
    """
    timm = find_spec("timm")
    if timm is None or not timm.submodule_search_locations:
        return None
    folder = Path(timm.submodule_search_locations[0]) / "data" / "_info"
    try:
        synsets = (folder / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
        lemmas = (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    names = dict(line.split("\t", 1) for line in lemmas if "\t" in line)
    return [names.get(synset, synset) for synset in synsets]


def choose(path: str | None, classes: int) -> list[str] | None:
    """The names in the file at ``path``, or ImageNet's where there are 1000 classes, or none.

    Raises InputError where the file has not one name per class.
    """
    if path is None:
        return imagenet() if classes == 1000 else None
    names = read(path)
    if len(names) != classes:
        raise InputError(
            f"the model has {classes} classes, but {path!r} has {len(names)} lines; give one name per line."
        )
    return names


def describe(names: Sequence[str] | None, index: int) -> str:
    """The number of a class, and its name where that is known."""
    return f"{index:4d}  {names[index]}" if names is not None else f"{index:4d}"
