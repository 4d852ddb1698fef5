"""HTML pages from Jinja2 templates. Values are escaped, and a page loads no other file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lora_rlhf.system.shown_text import visible


def render_page(template: Path, values: Mapping[str, Any]) -> str:
    """Renders a template file with these values. The template may include files of its folder."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(values)


def _shown(value: Any) -> Any:
    """A value without characters that are invisible, or that change the direction of the text after them."""
    if isinstance(value, Markup):
        return Markup(visible(str(value)))
    return visible(value) if isinstance(value, str) else value
