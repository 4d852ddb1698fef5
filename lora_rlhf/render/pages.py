"""HTML pages from Jinja2 templates. What comes in as text is escaped; a page needs nothing but itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def html_page(template: Path, values: Mapping[str, Any]) -> str:
    """The page that a template file makes of these values. It may include files of its own folder."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(values)
