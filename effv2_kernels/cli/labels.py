"""Names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from effv2_kernels.errors import InputError

IMAGENET = "imagenet"


def read(path: str) -> list[str]:
    """The names in a text file, one class per line. Raises InputError where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()  # Windows' begin with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the labels {path!r} cannot be read ({error}); give a text file.") from error


def named(name: str) -> list[str]:
    """The names in the file ``name``, or those of ImageNet where that is what it says.

    Raises InputError where they cannot be had.
    """
    if name != IMAGENET:
        return read(name)
    found = imagenet()
    if found is None:
        raise InputError(
            "the names of ImageNet's classes come from timm, which is not installed: pip install timm, or "
            "give a text file of them."
        )
    return found


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


def choose(path: str | None, classes: int, own: Sequence[str] | None = None) -> Sequence[str] | None:
    """The names in the file at ``path``, or the network's ``own``, or ImageNet's for 1000 classes, or none.

    Raises InputError where the file has not one name per class.
    """
    if path is None:
        return own or (imagenet() if classes == 1000 else None)
    names = read(path)
    if len(names) != classes:
        raise InputError(
            f"the model has {classes} classes, but {path!r} has {len(names)} lines; give one name per line."
        )
    return names


def describe(names: Sequence[str] | None, index: int) -> str:
    """The number of a class, and its name where that is known."""
    return f"{index:4d}  {names[index]}" if names is not None else f"{index:4d}"
