"""Which members of a class its page shows."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

#: Fields of a named tuple are told by its docstring; scikit-learn adds the others to estimators.
HIDDEN_DOC = re.compile(r"Alias for field number \d+")
HIDDEN_NAME = re.compile(r"set_\w+_request|get_metadata_routing|_sklearn_\w+")


def skip(
    app: Sphinx, what: str, name: str, obj: Any, would_skip: bool, options: Any
) -> bool | None:
    """Leave out what says nothing; None leaves the decision to others."""
    del app, what, would_skip, options
    if HIDDEN_NAME.fullmatch(name) or HIDDEN_DOC.fullmatch(str(getattr(obj, "__doc__", ""))):
        return True
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect."""
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
