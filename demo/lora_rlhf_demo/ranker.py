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


def make_ranker(elem_id: str) -> gr.HTML:
    """An empty ranking component. `ranker_value` makes its value, in which the page changes ranks and ratings."""
    return gr.HTML(None, html_template=TEMPLATE, js_on_load=SCRIPT, apply_default_css=False, elem_id=elem_id)


def ranker_value(
    name: str,
    texts: Sequence[str],
    ranks: Sequence[int] | None = None,
    is_placed: Sequence[bool] | None = None,
    ratings: Sequence[int | None] | None = None,
    flags: Sequence[Sequence[str]] | None = None,
    has_fields: bool = True,
) -> dict[str, Any]:
    """The value that displays these texts in the order of their ranks.

    is_placed: whether each answer was ranked by somebody; where not, it shares its rank with all such answers. Without
    ranks nothing is placed. has_fields: ask for ratings and flags too.
    """
    num_texts = len(texts)
    return {
        "id": name,
        "texts": [text.translate(PICTURES) for text in texts],
        "ranks": list(ranks or [1] * num_texts),
        "placed": list(is_placed or [ranks is not None] * num_texts),
        "ratings": list(ratings or [None] * num_texts),
        "flags": [list(names) for names in flags or [()] * num_texts],
        "fields": {"ratings": len(RATINGS), "flags": list(FLAGS.items())} if has_fields else None,
    }
