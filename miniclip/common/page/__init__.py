"""HTML pages in one file that works offline: one frame, base.html, and one style sheet, page.css, for all of them.

Whatever a template prints is text: on one line without control characters, and escaped. No script goes into a page, and
its policy lets none run and fetches nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from miniclip.common.printing import printable

_FOLDER = Path(__file__).parent


def render_page(template: Path, **values: Any) -> str:
    """A template that extends base.html, with values, as HTML."""
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return render(template, None, style=Markup(style), digest=Markup(digest), **values)


def render(template: Path, escape: Callable[[str], str] | None, **values: Any) -> str:
    """A template with values. escape: for what is printed, on one printable line; None escapes it for HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    def finalize(value: Any) -> Any:
        if hasattr(value, "__html__"):
            return value
        return escape(printable(str(value))) if escape else printable(str(value))

    environment = Environment(
        loader=FileSystemLoader([template.parent, _FOLDER]),
        autoescape=escape is None,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def data_uri(content: bytes, kind: str) -> Markup:
    """An image of that kind (png, jpeg) as the source of an img element."""
    return Markup(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")
