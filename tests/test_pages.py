"""Links of the pages lead somewhere, and the README has the marks that commands fill."""

import re
from pathlib import Path

import pytest

from bench.gpu import chart as gpu_chart

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page):
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^()\s]+)\)", page.read_text(encoding="utf-8"))
    if page.name == "README.md":
        assert {"docs/usage.md", "docs/api.md", "docs/format.md", "docs/design.md", "docs/speed.md"} <= set(
            links
        )
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_has_the_marks_of_its_tables():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    # Those of bench/chart.py, which needs matplotlib.
    for begin, end in (gpu_chart.MARKS, ("<!-- speed:begin -->", "<!-- speed:end -->")):
        assert text.count(begin) == text.count(end) == 1
        assert text.index(begin) < text.index(end)
