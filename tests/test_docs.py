"""The site: every piece of code on its pages runs, and no public name is missing."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import rnncore as rc

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(
    page.relative_to(DOCS).as_posix()
    for pattern in ("*.rst", "guides/*.rst")
    for page in DOCS.glob(pattern)
    if ">>> " in page.read_text("utf-8")
)
#: Modules whose names users import from them.
MODULES = ("diagnosis", "plot", "protocol", "reference", "sklearn")


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page: str) -> None:
    failed, tried = doctest.testfile(
        str(DOCS / page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert tried
    assert not failed


def test_every_guide_has_code_and_is_listed() -> None:
    listed = (DOCS / "guides/index.rst").read_text("utf-8")
    for guide in (DOCS / "guides").glob("*.rst"):
        if guide.stem != "index":
            assert f"   {guide.stem}\n" in listed
            assert ">>> " in guide.read_text("utf-8"), guide


def documented() -> set[str]:
    """Return the full names in the tables of the interface reference."""
    names = set()
    for page in (DOCS / "api").glob("*.rst"):
        module = ""
        in_table = False
        for line in page.read_text("utf-8").splitlines():
            if found := re.fullmatch(r"\.\. currentmodule:: (\S+)", line):
                module = found[1]
            elif line and not line.startswith(" "):
                in_table = line == ".. autosummary::"
            elif in_table and re.fullmatch(r"   \w+", line):
                names.add(f"{module}.{line.strip()}")
    return names


def expected() -> set[str]:
    """Return the full names of what users can import."""
    named = {f"rnncore.{name}" for name in rc.__all__ if name != "__version__"}
    named -= {f"rnncore.{name}" for name in MODULES}
    for module in MODULES:
        loaded = importlib.import_module(f"rnncore.{module}")
        here = {name for name in loaded.__all__ if name not in rc.__all__}
        # What both modules offer is told once, under rnncore.
        here |= {n for n in loaded.__all__ if getattr(rc, n, None) is not getattr(loaded, n)}
        named |= {f"rnncore.{module}.{name}" for name in here}
    return named


def test_every_public_name_is_in_the_reference() -> None:
    assert expected() <= documented()


def test_the_reference_names_nothing_that_is_not_there() -> None:
    for name in documented():
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
