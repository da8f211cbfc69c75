"""The Sphinx extension: pages that end in what the code says, and diagrams as pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from docs.building.commands import commands_page
from docs.building.diagrams import picture_of
from docs.building.python import python_page
from docs.building.routes import routes_page

#: Pages to whose text something is added when they are read.
MADE: dict[str, Callable[[], str]] = {
    "commands": commands_page,
    "python": python_page,
    "routes": routes_page,
}


class Mermaid(SphinxDirective):
    """A diagram: the page has its source, the site a picture that was drawn of it."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The picture, inside the page.

        Raises:
            DirectiveError: none was drawn of this source.
        """
        picture = picture_of("\n".join(self.content))
        if not picture.exists():
            raise self.error(f"{picture.name} is missing: python -m docs.building.diagrams draws it")
        html = f'<figure class="diagram">{picture.read_text(encoding="utf-8")}</figure>'
        return [nodes.raw("", html, format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register both."""
    app.add_directive("mermaid", Mermaid)
    app.connect("source-read", _add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _add(_app: Sphinx, name: str, source: list[str]) -> None:
    if name in MADE:
        source[0] += "\n" + MADE[name]()
