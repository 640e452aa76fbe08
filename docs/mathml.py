"""Equations as MathML: browsers draw it without a script, so the site can be read offline.

The converter is that of Docutils. What it does not understand is a warning, and so an error.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def converted(node: nodes.Element, *, as_block: bool) -> str:
    """Return the MathML of a formula, or its source after a warning."""
    code = node.astext()
    try:
        return str(tex2mathml(code, as_block=as_block))
    except MathError as error:
        logger.warning("cannot convert the formula %r: %s", code, error, location=node)
        return code


def visit_math(writer: Any, node: nodes.math) -> None:
    """Write a formula in a line of text."""
    writer.body.append(converted(node, as_block=False))
    raise nodes.SkipNode


def visit_displaymath(writer: Any, node: nodes.math_block) -> None:
    """Write a formula that stands by itself."""
    writer.body.append(writer.starttag(node, "div", CLASS="math"))
    writer.body.append(converted(node, as_block=True))
    writer.body.append("</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the renderer to Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
