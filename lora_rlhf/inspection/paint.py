"""A batch for people: in colour for a terminal, in plain marks for a file, and as an HTML page."""

import itertools
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lora_rlhf.configs.catalogue import Use
from lora_rlhf.data.refusals import counted
from lora_rlhf.inspection.batches import Batch, Cell, Line, Role
from lora_rlhf.render.pages import html_page

TEMPLATE = Path(__file__).parent / "templates" / "batch.html"
BETWEEN = "\u00b7"  # a dot between tokens where there is no colour
WIDTH = 100  # characters of a line of ids

# Two shades of each role's background (256-colour palette, and the same for HTML): neighbours differ, so that every
# token can be told from the next. The text on them is black, whatever the terminal's own colours are.
SHADES: dict[Role, tuple[tuple[int, str], tuple[int, str]]] = {
    "prompt": ((153, "#afd7ff"), (117, "#87d7ff")),
    "response": ((157, "#afffaf"), (114, "#87d787")),
    "end": ((222, "#ffd787"), (222, "#ffd787")),
    "padding": ((252, "#d0d0d0"), (252, "#d0d0d0")),
}
MEANINGS: dict[Use, dict[Role, str]] = {
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
SCORE: dict[Use, str] = {"scored": "the score is read here", "sampled": "the score is added to the reward here"}
COUNTED: dict[Use, str] = {"learned": "in the loss", "scored": "scored", "sampled": "sampled"}


def terminal(batch: Batch, heading: Sequence[str], color: bool) -> str:
    """The batch as text: in 256 colours, or with brackets around roles and dots between tokens."""
    parts = [*_heading(batch, heading), ""]
    for number, line in enumerate(batch.lines, start=1):
        parts += [f"{number}. {visible(line.title)}: {_counts(batch, line)}"]
        parts += [f"   {note}" for note in line.notes]
        parts += [_colored(line.cells) if color else _bracketed(line.cells), *_ids(line), ""]
    parts.append("legend")
    for role, meaning in _legend(batch):
        sample = f"\x1b[38;5;16;48;5;{SHADES[role][0][0]}m{role:<10}\x1b[0m" if color else f"{f'[{role}]':<10}"
        parts.append(f"  {sample} {meaning}")
    if _has_score(batch):
        parts.append(f"  {'<- score':<10} {SCORE[batch.stage.use]}")
    return "\n".join(parts)


def page(batch: Batch, heading: Sequence[str]) -> str:
    """The batch as an HTML page that needs nothing else; pointing at a token shows its id, position and role."""
    lines = [
        {
            "title": visible(line.title),
            "counts": _counts(batch, line),
            "notes": line.notes,
            "spans": list(_spans(line.cells, COUNTED[batch.stage.use])),
        }
        for line in batch.lines
    ]
    return html_page(
        TEMPLATE,
        {
            **{"batch": batch, "facts": _heading(batch, heading), "legend": _legend(batch), "lines": lines},
            **{"score": SCORE[batch.stage.use] if _has_score(batch) else "", "shades": SHADES},
        },
    )


def visible(text: str) -> str:
    """Text in which nothing is hidden and nothing acts: a newline is marked and kept, other controls are spelled."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return "\u23ce\n"
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's pictures of control characters
    category = unicodedata.category(character)
    if character != " " and category[0] in "CZ":  # controls, invisible formatting, unassigned, spaces of other kinds
        return f"\\u{code:04x}"
    return character


def _heading(batch: Batch, heading: Sequence[str]) -> list[str]:
    tensors = ", ".join(f"{name} {shape}" for name, shape in batch.shapes.items())
    return [*map(visible, heading), f"tensors: {tensors}", *batch.notes]


def _counts(batch: Batch, line: Line) -> str:
    response = line.count("response", "end")
    parts = [f"prompt {counted(line.count('prompt'), 'token')}"]
    if response:
        parts.append(f"response {response} ({line.counted} {COUNTED[batch.stage.use]})")
    positions = [cell.position for cell in line.cells if cell.position is not None]
    return ", ".join([*parts, f"padding {line.count('padding')}; positions {positions[0]} to {positions[-1]}"])


def _legend(batch: Batch) -> list[tuple[Role, str]]:
    """The roles that occur, with what they mean to this stage."""
    present = {cell.role for line in batch.lines for cell in line.cells}
    return [(role, meaning) for role, meaning in MEANINGS[batch.stage.use].items() if role in present]


def _has_score(batch: Batch) -> bool:
    return any(cell.score for line in batch.lines for cell in line.cells)


def _folded(cells: Sequence[Cell]) -> Iterator[tuple[Cell, int]]:
    """Each cell once, but a run of padding as one with its length."""
    for role, run in itertools.groupby(cells, key=lambda cell: cell.role):
        group = list(run)
        yield from [(group[0], len(group))] if role == "padding" else ((cell, 1) for cell in group)


def _text(cell: Cell, times: int) -> str:
    return visible(cell.text) + (f" x {times}" if cell.role == "padding" else "")


def _colored(cells: Sequence[Cell]) -> str:
    painted = ""
    for number, (cell, times) in enumerate(_folded(cells)):
        style = f"\x1b[38;5;16;48;5;{SHADES[cell.role][number % 2][0]}m"
        # a background that is on at the end of a line would run to the terminal's edge
        painted += style + _text(cell, times).replace("\n", f"\x1b[0m\n{style}") + "\x1b[0m"
        painted += " <- score" if cell.score else ""
    return painted


def _bracketed(cells: Sequence[Cell]) -> str:
    painted = ""
    for role, run in itertools.groupby(_folded(cells), key=lambda item: item[0].role):
        group = list(run)
        painted += f"[{role}:{BETWEEN.join(_text(*item) for item in group)}]"
        painted += " <- score " if group[-1][0].score else ""
    return painted.rstrip(" ")


class Span(NamedTuple):
    """A token of the page: its classes, what it says when it is pointed at, and its text."""

    classes: str
    title: str
    text: str


def _spans(cells: Sequence[Cell], counted: str) -> Iterator[Span]:
    for number, (cell, times) in enumerate(_folded(cells)):
        classes = f"{cell.role} {'ab'[number % 2]}{' score' if cell.score else ''}"
        position = "" if cell.position is None else f", position {cell.position}"
        title = f"id {cell.id}, {cell.role}{position}{f', {counted}' if cell.counts else ''}"
        yield Span(classes, title, _text(cell, times))


def _ids(line: Line) -> list[str]:
    """The ids of prompt and response, padding aside."""
    lines = []
    for name, roles in (("prompt", ("prompt",)), ("response", ("response", "end"))):
        if ids := " ".join(str(cell.id) for cell in line.cells if cell.role in roles):
            lines += textwrap.wrap(f"{name} ids: {ids}", WIDTH, initial_indent="   ", subsequent_indent="     ")
    return lines
