"""HTML pages that open offline: one environment, one base page, one style."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

import morphbits
from morphbits.report.tables import number, small


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("morphbits", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"data_uri": data_uri, "number": number, "small": small}
    folder = Path(__file__).parent
    environment.globals |= {
        "style": (folder / "page.css").read_text(encoding="utf-8"),
        "viewer_script": (folder / "viewer.js").read_text(encoding="utf-8"),
        "niivue_licence": (folder / "niivue-licence.txt").read_text(encoding="utf-8"),
        "version": morphbits.__version__,
    }
    return environment


def data_uri(content: bytes, kind: str) -> str:
    """A text of this kind as a link that holds it, a fifth or so longer than the text."""
    return f"data:text/{kind};charset=utf-8,{quote(content, safe=',.-_')}"


def render(template: str, **values: Any) -> str:
    """A page as HTML, from a template that extends ``report/base.html``; its path is below the
    package."""
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return _environment().get_template(template).render(written=written, **values)
