"""docs/api.md is what the docstrings give, and has every public name as Python sees it."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import effv2_kernels

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("api", ROOT / "scripts" / "api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(script):
    return script.page()


def test_the_page_is_up_to_date(script, page):
    assert script.PAGE.read_text(encoding="utf-8") == page, "run make docs"


@pytest.mark.parametrize("name", effv2_kernels.__all__)
def test_every_public_name_is_on_it(page, name):
    value = getattr(effv2_kernels, name)
    if not inspect.isfunction(value):
        assert re.search(rf"^\| `effv2_kernels\.{name}` \| `.+` \| .+ \|$", page, re.MULTILINE)
        return
    _, found, section = page.partition(f"### `effv2_kernels.{name}`\n\n```python\n{name}(")
    assert found, name
    signature, _, text = section.partition("\n```\n")
    # Read from the source as Python knows them: the same parameters, in the same order, with their defaults.
    parameters = inspect.signature(value).parameters.values()
    given = [
        p for p in re.split(r",\s+(?![^\[]*\])", signature.rpartition(")")[0].strip().rstrip(",")) if p != "*"
    ]
    assert [re.match(r"\w+", text)[0] for text in given] == [p.name for p in parameters]
    for text_of, p in zip(given, parameters, strict=True):
        assert text_of.endswith(f" = {p.default!r}") == (p.default is not p.empty)
    first = inspect.getdoc(value).splitlines()[0]
    assert text.strip().startswith(first)


def test_every_block_is_on_it(page):
    from effv2_kernels.blocks import BLOCK_TYPES

    for block in BLOCK_TYPES.values():
        assert f"### `{block.__module__}.{block.__name__}`\n" in page


def test_parameters_become_lists(script):
    text = "x: (N, C, H, W), any. stride: 1 or 2;\n    more: of it; or: not a name"
    assert list(script._items(" ".join(text.split()), ["x", "stride", "more"])) == [
        ("x", "(N, C, H, W), any."),
        ("stride", "1 or 2."),
        ("more", "of it; or: not a name"),
    ]
    assert list(script._items("a, b: both", ["a", "b"])) == [("a`, `b", "both")]
    assert script._paragraph("Prose that says x: y\n    as it stands", ["x"]) == (
        "Prose that says x: y\n    as it stands"
    )
