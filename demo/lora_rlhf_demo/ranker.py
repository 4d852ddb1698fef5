"""The ranking component: answers as cards that are dragged, or moved by keys, into an order with ties."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lora_rlhf_demo.show import PICTURES
from lora_rlhf_demo.tasks import FLAGS, RATINGS

# The template holds nothing of the value: the script draws it, as text.
TEMPLATE = """<div class="ranker" hidden>
  <p class="sr-only help"></p>
  <p class="sr-only" aria-live="polite"></p>
  <ol aria-label="Answers, the best first"></ol>
</div>"""
SCRIPT = (Path(__file__).parent / "ranker.js").read_text(encoding="utf-8")


def ranker(elem_id: str) -> gr.HTML:
    """The empty component. `to_rank` makes its value, in which the page changes ranks, ratings, flags and touched."""
    return gr.HTML(None, html_template=TEMPLATE, js_on_load=SCRIPT, apply_default_css=False, elem_id=elem_id)


def to_rank(
    name: str,
    texts: Sequence[str],
    ranks: Sequence[int] | None = None,
    ratings: Sequence[int | None] | None = None,
    flags: Sequence[Sequence[str]] | None = None,
    fields: bool = True,
) -> dict[str, Any]:
    """The value that displays these texts, in this order unless ranks are given. fields: ask for ratings and flags."""
    count = len(texts)
    return {
        "id": name,
        "texts": [text.translate(PICTURES) for text in texts],
        "ranks": list(ranks or range(1, count + 1)),
        "ratings": list(ratings or [None] * count),
        "flags": [list(names) for names in flags or [()] * count],
        "fields": {"ratings": len(RATINGS), "flags": list(FLAGS.items())} if fields else None,
        "touched": ranks is not None,
    }
