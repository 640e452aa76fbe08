"""The gallery: every program of ``examples/`` is run, with a smaller budget, and shown.

The examples are ordinary programs with a ``main``. Sphinx-Gallery runs each as ``__main__``; this
module tells it with which arguments, catches their exit status, and hands over the pictures that
they save.
"""

from __future__ import annotations

import importlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from sphinx.application import Sphinx

Call: TypeAlias = Callable[[], Any]

#: What the examples need. Without it they would end early, with a line in place of a picture.
NEEDED = ("matplotlib", "sklearn", "statsmodels")

#: In this order: from what is simple to what is long. No example may be missing here.
ARGUMENTS: dict[str, list[str]] = {
    "one_to_one": [],
    "one_to_many": ["--epochs", "8"],
    "many_to_one": [],
    "many_to_many": ["--epochs", "3"],
    "encoder_decoder": [],
    "char_lm": ["--epochs", "1", "--hidden", "96", "--layers", "1", "--sample", "300"],
    "vanishing_gradient": ["--updates", "100"],
    "overfitting": ["--epochs", "30", "--folds", "2", "--members", "3"],
}
#: Modules that examples import.
HELPERS = ("datasets", "pictures")

#: Where examples save pictures; emptied after each.
pictures = Path(tempfile.mkdtemp(prefix="rnncore-gallery-"))


class Arguments:
    """Gives each example its arguments, for Sphinx-Gallery's ``reset_argv``."""

    def __call__(self, gallery_conf: Any, script_vars: Any) -> list[str]:
        """Return what stands behind the program's name."""
        del gallery_conf
        return [*ARGUMENTS[Path(script_vars["src_file"]).stem], "--out", str(pictures)]

    def __repr__(self) -> str:
        """Say what it depends on: a change builds the gallery anew."""
        return f"Arguments({ARGUMENTS})"


class Called:
    """Runs a program, for Sphinx-Gallery's ``show_memory``; what it measures is not shown.

    The programs end by raising SystemExit. Status 0 is an end like others, any other one an error.
    """

    def __call__(self, call: Call) -> tuple[float, Any]:
        """Return no memory, and what the call returns."""
        try:
            return 0.0, call()
        except SystemExit as status:
            if status.code:
                raise RuntimeError(f"the example exited with status {status.code}") from status
            return 0.0, None


def saved_pictures(block: Any, block_vars: Any, gallery_conf: Any) -> str:
    """Hand over the pictures that the program has saved."""
    from sphinx_gallery.scrapers import figure_rst

    del block
    paths: Iterator[str] = block_vars["image_path_iterator"]
    taken = []
    for picture in sorted(pictures.glob("*.png")):
        taken.append(next(paths))
        shutil.copyfile(picture, taken[-1])
    if not taken:
        raise RuntimeError(f"{block_vars['src_file']}: expected a picture in --out, got none")
    for file in pictures.iterdir():
        file.unlink()
    return str(figure_rst(taken, gallery_conf["src_dir"]))


def place(name: str) -> int:
    """Order the examples; Sphinx-Gallery's ``within_subsection_order``."""
    return list(ARGUMENTS).index(Path(name).stem)


def gallery_settings(docs: Path) -> dict[str, Any]:
    """Return Sphinx-Gallery's settings, once everything that the examples need is there."""
    for module in NEEDED:
        importlib.import_module(module)
    folder = docs.parent / "examples"
    found = {path.stem for path in folder.glob("*.py")} - {*HELPERS}
    if found != {*ARGUMENTS}:
        raise RuntimeError(
            f"docs/gallery.py: expected arguments for {sorted(found)}, got {sorted(ARGUMENTS)}"
        )
    helpers = "|".join(HELPERS)
    return {
        "examples_dirs": str(folder),
        "gallery_dirs": "examples",
        "filename_pattern": r"\.py$",
        "ignore_pattern": rf"(?:{helpers})\.py$",
        "within_subsection_order": "gallery.place",
        "reset_argv": "gallery.arguments",
        "image_scrapers": ("gallery.saved_pictures",),
        "show_memory": Called(),
        "reset_modules": (),
        "backreferences_dir": "api/backreferences",
        "doc_module": ("rnncore",),
        "abort_on_example_error": True,
        "download_all_examples": False,
        "show_signature": False,
        "remove_config_comments": True,
        "min_reported_time": 10**6,
        "write_computation_times": False,
    }


arguments = Arguments()


def titled(app: Sphinx, name: str, source: list[str]) -> None:
    """Make of a program's docstring a page: its first line is the title, commands are commands."""
    del app
    if not re.fullmatch(r"examples/(?!index|sg_).*", name):
        return
    text = source[0]
    label = re.search(r"^\.\. _sphx_glr_examples_\w+\.py:\n+", text, re.MULTILINE)
    if label is None:
        raise RuntimeError(f"{name}: expected the label of an example, got none")
    title, rest = text[label.end() :].split("\n", 1)
    rest = re.sub(
        r"^((?:    python examples/.*\n)+)", r".. code-block:: console\n\n\1", rest, count=1,
        flags=re.MULTILINE,
    )  # fmt: skip
    source[0] = f"{text[: label.end()]}{title}\n{'=' * len(title)}\n{rest}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect."""
    app.connect("source-read", titled)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
