"""Pictures drawn with matplotlib, in the colours of the palette: PNG files, and SVG as a part of a page."""

import io
import re
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lora_rlhf.render.palette import DRAWN, INK, LIGHT
from lora_rlhf.system.disk import new_file

SMALL = 8  # points: letters of labels and legends


def save_png(figure: Figure, path: Path) -> None:
    """Writes the picture as a PNG file. After a crash there is no partial file."""
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=140)


def style_axis(axis: Axes) -> None:
    """Draws only the left and lower lines of the axis, and small letters."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=SMALL, colors=INK)


def svg_element(figure: Figure, title: str) -> str:
    """The picture as an SVG element: no XML header, named for screen readers.

    Its colours are variables of the page (for example --ink), so that a dark page has light ink.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", text, count=1)
    for name in DRAWN:
        text = text.replace(LIGHT[name], f"var(--{name})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1).strip()
