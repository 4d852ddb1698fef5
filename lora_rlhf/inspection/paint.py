"""A batch as text for a terminal, in colour or with plain marks, and as an HTML page."""

import itertools
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lora_rlhf.configs.catalogue import Use
from lora_rlhf.data.refusals import pluralize
from lora_rlhf.inspection.batches import Batch, Cell, Line, TokenKind
from lora_rlhf.render.pages import render_page

TEMPLATE = Path(__file__).parent / "templates" / "batch.html"
TOKEN_SEPARATOR = "\u00b7"  # a dot between tokens where there is no colour
ANSI_RESET = "\x1b[0m"
LINE_WIDTH = 100  # characters of a line of ids

# Two shades of the background of each kind of token (256-colour palette, and HTML): neighbours differ, so that every
# token can be told from the next. The text on them is black, whatever the terminal's own colours are.
SHADES: dict[TokenKind, tuple[tuple[int, str], tuple[int, str]]] = {
    "prompt": ((153, "#afd7ff"), (117, "#87d7ff")),
    "response": ((157, "#afffaf"), (114, "#87d787")),
    "end": ((222, "#ffd787"), (222, "#ffd787")),
    "padding": ((252, "#d0d0d0"), (252, "#d0d0d0")),
}
MEANINGS: dict[Use, dict[TokenKind, str]] = {
    "learned": {
        "prompt": "read, not learned",
        "response": "in the loss: each token is predicted from all before it",
        "end": "ends the response, and is in the loss",
        "padding": "masked",
    },
    "scored": {
        "prompt": "read",
        "response": "read",
        "end": "ends the response",
        "padding": "masked",
    },
    "sampled": {
        "prompt": "given",
        "response": "sampled: log-probability, KL and advantage at each token",
        "end": "ends the response, and is an action like the others",
        "padding": "masked",
    },
}
SCORE_MEANINGS: dict[Use, str] = {
    "scored": "the score is read here",
    "sampled": "the score is added to the reward here",
}
COUNTED_WORDS: dict[Use, str] = {"learned": "in the loss", "scored": "scored", "sampled": "sampled"}


def terminal_text(batch: Batch, heading: Sequence[str], is_colored: bool) -> str:
    """The batch as text: in 256 colours, or with brackets around kinds of tokens and dots between tokens."""
    lines = [*_heading_lines(batch, heading), ""]
    for line_number, batch_line in enumerate(batch.lines, start=1):
        lines += [f"{line_number}. {visible_text(batch_line.title)}: {_count_text(batch, batch_line)}"]
        lines += [f"   {note}" for note in batch_line.notes]
        lines += [
            _colored_text(batch_line.cells) if is_colored else _bracketed_text(batch_line.cells),
            *_id_lines(batch_line),
            "",
        ]
    lines.append("legend")
    for token_kind, meaning in _legend_entries(batch):
        (shade, _), _ = SHADES[token_kind]
        sample = f"{_ansi_style(shade)}{token_kind:<10}{ANSI_RESET}" if is_colored else f"{f'[{token_kind}]':<10}"
        lines.append(f"  {sample} {meaning}")
    if _has_score(batch):
        lines.append(f"  {'<- score':<10} {SCORE_MEANINGS[batch.stage.use]}")
    return "\n".join(lines)


def batch_page(batch: Batch, heading: Sequence[str]) -> str:
    """The batch as an HTML page in one file. The tooltip of a token shows its id, its position and its kind."""
    lines = [
        {
            "title": visible_text(line.title),
            "counts": _count_text(batch, line),
            "notes": line.notes,
            "spans": list(_page_spans(line.cells, COUNTED_WORDS[batch.stage.use])),
        }
        for line in batch.lines
    ]
    return render_page(
        TEMPLATE,
        {
            **{
                "batch": batch,
                "facts": _heading_lines(batch, heading),
                "legend": _legend_entries(batch),
                "lines": lines,
            },
            **{"score": SCORE_MEANINGS[batch.stage.use] if _has_score(batch) else "", "shades": SHADES},
        },
    )


def visible_text(text: str) -> str:
    """The text with every character visible: a newline is marked and kept, other control characters are spelled out."""
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    """The character itself if it can be seen; else a mark or an escape for it."""
    code = ord(character)
    if character == "\n":
        return "\u23ce\n"
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's pictures of control characters
    category = unicodedata.category(character)
    if character != " " and category[0] in "CZ":  # controls, invisible formatting, unassigned, spaces of other kinds
        return f"\\u{code:04x}"
    return character


def _heading_lines(batch: Batch, heading: Sequence[str]) -> list[str]:
    tensors = ", ".join(f"{name} {shape}" for name, shape in batch.shapes.items())
    return [*map(visible_text, heading), f"tensors: {tensors}", *map(visible_text, batch.notes)]


def _count_text(batch: Batch, line: Line) -> str:
    """How many tokens of each kind the line has, and its positions, as a phrase."""
    num_response_tokens = line.count("response", "end")
    parts = [f"prompt {pluralize(line.count('prompt'), 'token')}"]
    if num_response_tokens:
        parts.append(f"response {num_response_tokens} ({line.num_counted} {COUNTED_WORDS[batch.stage.use]})")
    positions = [cell.position for cell in line.cells if cell.position is not None]
    return ", ".join([*parts, f"padding {line.count('padding')}; positions {positions[0]} to {positions[-1]}"])


def _legend_entries(batch: Batch) -> list[tuple[TokenKind, str]]:
    """The kinds of tokens in the batch, each with its meaning in this stage."""
    present_kinds = {cell.token_kind for line in batch.lines for cell in line.cells}
    return [
        (token_kind, meaning)
        for token_kind, meaning in MEANINGS[batch.stage.use].items()
        if token_kind in present_kinds
    ]


def _has_score(batch: Batch) -> bool:
    return any(cell.score for line in batch.lines for cell in line.cells)


def _fold_padding(cells: Sequence[Cell]) -> Iterator[tuple[Cell, int]]:
    """Yields (cell, 1) for each cell, but a run of padding as (its first cell, its length)."""
    for token_kind, run in itertools.groupby(cells, key=lambda cell: cell.token_kind):
        group = list(run)
        yield from [(group[0], len(group))] if token_kind == "padding" else ((cell, 1) for cell in group)


def _cell_text(cell: Cell, count: int) -> str:
    return visible_text(cell.text) + (f" x {count}" if cell.token_kind == "padding" else "")


def _ansi_style(shade: int) -> str:
    return f"\x1b[38;5;16;48;5;{shade}m"  # black text on this background


def _colored_text(cells: Sequence[Cell]) -> str:
    """The cells with coloured backgrounds in the two shades of their kind, in turn."""
    text = ""
    for number, (cell, count) in enumerate(_fold_padding(cells)):
        shade, _ = SHADES[cell.token_kind][number % 2]
        style = _ansi_style(shade)
        # a background that is on at the end of a line would run to the terminal's edge
        text += style + _cell_text(cell, count).replace("\n", f"{ANSI_RESET}\n{style}") + ANSI_RESET
        text += " <- score" if cell.score else ""
    return text


def _bracketed_text(cells: Sequence[Cell]) -> str:
    """The cells without colour: [kind:token·token] for each run of one kind, which a score ends as well."""
    text, items = "", list(_fold_padding(cells))
    scores_before = itertools.accumulate((cell.score for cell, _ in items), initial=0)
    runs = itertools.groupby(zip(items, scores_before, strict=False), key=lambda item: (item[0][0].token_kind, item[1]))
    for (token_kind, _), run in runs:
        group = [item for item, _ in run]
        text += f"[{token_kind}:{TOKEN_SEPARATOR.join(_cell_text(*item) for item in group)}]"
        text += " <- score " if group[-1][0].score else ""
    return text.rstrip(" ")


class Span(NamedTuple):
    """A token of the page: its CSS classes, its tooltip, and its text."""

    classes: str
    title: str
    text: str


def _page_spans(cells: Sequence[Cell], counted_word: str) -> Iterator[Span]:
    """Yields the spans of a line for the page, in the two shades of their kind, in turn."""
    for number, (cell, count) in enumerate(_fold_padding(cells)):
        classes = f"{cell.token_kind} {'ab'[number % 2]}{' score' if cell.score else ''}"
        position = "" if cell.position is None else f", position {cell.position}"
        title = f"id {cell.id}, {cell.token_kind}{position}{f', {counted_word}' if cell.counts else ''}"
        yield Span(classes, title, _cell_text(cell, count))


def _id_lines(line: Line) -> list[str]:
    """The ids of the prompt and of the response without padding, wrapped."""
    lines = []
    for name, token_kinds in (("prompt", ("prompt",)), ("response", ("response", "end"))):
        if ids := " ".join(str(cell.id) for cell in line.cells if cell.token_kind in token_kinds):
            lines += textwrap.wrap(f"{name} ids: {ids}", LINE_WIDTH, initial_indent="   ", subsequent_indent="     ")
    return lines
