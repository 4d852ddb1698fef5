"""The ranking component: answers as cards that are dragged, or moved by keys, into an order with ties."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lora_rlhf.data.labels import FLAGS, PROMPT_FLAGS
from lora_rlhf.system.shown_text import visible
from lora_rlhf_demo.label_value import MAX_TEXT
from lora_rlhf_demo.tasks import RATINGS, REASONS

KEYS = (
    ("A B C ...", "ranks that answer next, the best first"),
    ("=", "ties the answer with the one above"),
    ("\u2191 \u2193", "moves the answer up or down"),
    ("1 to 9", "gives the answer that rank (the same digit twice: a tie), and goes to the next"),
    ("\u2190 \u2192", "the previous or next answer; with two answers: the better one"),
    ("Shift + 1 to 7", "quality of the answer"),
    ("Backspace", "takes the answer's rank away"),
    ("O", "shows all of a long answer"),
    ("Enter", "saves (Ctrl+Enter while you write)"),
    ("S", "skips the prompt; it comes again at the end"),
    ("U", "takes back what you saved last"),
    ("?", "shows and hides this list"),
)
# The template holds nothing of the value: the script draws it, as text.
TEMPLATE = f"""<div class="ranker" hidden>
  <p class="hint"><span>.</span><button type="button">All keys (?)</button></p>
  <dl class="help" hidden>{"".join(f"<dt>{keys}</dt><dd>{meaning}</dd>" for keys, meaning in KEYS)}</dl>
  <p class="sr-only" aria-live="polite"></p>
  <ol aria-label="Answers, the best first"></ol>
  <div class="rest"></div>
</div>"""
PARTS = ("ranker_fields.js", "ranker_drag.js", "ranker.js")
SCRIPT = "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in PARTS)


def make_ranker(elem_id: str) -> gr.HTML:
    """An empty ranking component. `ranker_value` makes its value, in which the page changes ranks and the rest.

    It triggers "submit", "clear" (skip) and "undo".
    """
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
    ranks nothing is placed. has_fields: ask for ratings, flags, reasons and texts too.
    """
    num_texts = len(texts)
    fields = {
        "ratings": len(RATINGS),
        "flags": list(FLAGS.items()),
        "prompt_flags": list(PROMPT_FLAGS.items()),
        "reasons": list(REASONS.items()),
        "longest": {"comment": MAX_TEXT["comment"], "ideal": MAX_TEXT["ideal answer"]},
    }
    return {
        "id": name,
        "texts": [visible(text) for text in texts],
        "ranks": list(ranks or [1] * num_texts),
        "placed": list(is_placed or [ranks is not None] * num_texts),
        "ratings": list(ratings or [None] * num_texts),
        "flags": [list(names) for names in flags or [()] * num_texts],
        "read": [False] * num_texts,
        "prompt_flags": [],
        "reasons": [],
        "comment": "",
        "ideal": "",
        "fields": fields if has_fields else None,
    }
