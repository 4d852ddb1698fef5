"""Writes docs/first_steps.ipynb: the cells of docs/python.md, for a notebook. Run it after a change of that page."""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, NOTEBOOK = DOCS / "python.md", DOCS / "first_steps.ipynb"


def notebook(page: str) -> dict[str, Any]:
    """The notebook of a page: its code blocks as cells without outputs, the text between them as Markdown."""
    parts = re.split(r"^```python\n(.*?)^```\n", page, flags=re.DOTALL | re.MULTILINE)  # text, code, text, ...
    cells = []
    for number, part in enumerate(parts):
        lines = part.strip().splitlines(keepends=True)
        about: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}, "source": lines}
        if number % 2:
            cells.append({"cell_type": "code", "execution_count": None, "outputs": []} | about)
        elif part.strip():
            cells.append({"cell_type": "markdown"} | about)
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": python}, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(notebook(PAGE.read_text()), indent=1) + "\n")
