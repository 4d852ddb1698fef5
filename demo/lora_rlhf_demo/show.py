"""HTML of the Compare tab. Texts of people and models are always escaped."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lora_rlhf_demo.compare import LETTERS, Comparison
from lora_rlhf_demo.requests import ColumnAnswer, Token
from lora_rlhf_demo.runs import NO_RUNS, RunState

if TYPE_CHECKING:
    from lora_rlhf.stats.win_rates import WinRate

FULL_COLOUR_AT = 3.0  # nats at which a token's colour is full
LONGEST_SHOWN = 200_000  # characters of one text
# Control characters are invisible, and dangerous in a text that somebody copies: their Unicode pictures stand for them.
PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
PICTURES |= {code: 0xFFFD for code in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def safe(text: str) -> str:
    """A text as HTML that displays exactly its characters."""
    cut = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} ... ({len(text)} characters)"
    return html.escape(cut.translate(PICTURES), quote=True)


def page(talk: Comparison, differences: bool = False) -> str:
    """The turns so far. differences: colour each token by its log-probability minus that under the reference."""
    if not talk.turns:
        return ""
    return f'<div class="talk">{"".join(_turn(talk, index, differences) for index in range(len(talk.turns)))}</div>'


def live(talk: Comparison, question: str, partial: Sequence[str], note: str = "") -> str:
    """The turn that is being answered: the answers so far, and a status line."""
    cards = [_card(_title(talk, column), column, _text(text), "", live=True) for column, text in enumerate(partial)]
    status = f'<p class="status" role="status">{safe(note)}</p>' if note else ""
    return f'<div class="talk">{_row(_question(question), cards)}{status}</div>'


def notice(text: str) -> str:
    """A status line or a hint in place of answers."""
    return f'<div class="talk"><p class="status" role="status">{safe(text)}</p></div>' if text else ""


def line(text: str) -> str:
    """A small line of text."""
    return f'<p class="line">{safe(text)}</p>'


def no_runs(runs: Sequence[RunState], root: str) -> str:
    """How to make a first run, and what the present runs lack."""
    items = "".join(f"<li>{safe(run.note)}</li>" for run in runs)
    unfinished = f"<p>There, but without a finished SFT stage:</p><ul>{items}</ul>" if items else ""
    return f'<div class="talk" id="no-runs"><p>{safe(NO_RUNS.format(root=root))}</p>{unfinished}</div>'


def failure(reason: str) -> str:
    """An error message in place of answers."""
    return f'<div class="talk"><p class="failure" role="alert">{safe(reason)}</p></div>'


def tokens(pieces: Sequence[Token]) -> str:
    """A text whose tokens are coloured by their gap: blue where the stage finds it likelier than the reference."""
    return '<div class="text" dir="auto">' + "".join(map(_token, pieces)) + "</div>"


def _turn(talk: Comparison, number: int, differences: bool) -> str:
    turn = talk.turns[number]
    hidden = talk.blind and turn.ranks is None
    cards = []
    for column, (stage, answer) in enumerate(zip(turn.stages, turn.answers, strict=True)):
        title = f"Answer {LETTERS[column]}"
        if not hidden:
            title = stage if turn.ranks is None else f"{stage} (was {LETTERS[column]}, rank {turn.ranks[column]})"
        # colours and figures would reveal a hidden model: the base, for example, is often its own reference
        body = tokens(answer.tokens) if differences and answer.tokens and not hidden else _text(answer.text)
        if not answer.text:
            body = '<div class="text"><em>empty</em></div>'
        figures = "" if hidden else _figures(answer)
        cards.append(_card(title, column, body, figures, best=turn.ranks is not None and turn.ranks[column] == 1))
    edit = (
        f'<button type="button" class="quiet" data-edit="{number}" '
        'title="take this question back into the box; what came after it goes">edit</button>'
    )
    return _row(_question(turn.question, edit), cards)


def _question(text: str, edit: str = "") -> str:
    return f'<div class="asked"><div class="question text" dir="auto">{safe(text)}</div>{edit}</div>'


def _row(question: str, cards: Sequence[str]) -> str:
    return f'<section class="turn">{question}<div class="cards">{"".join(cards)}</div></section>'


def _title(talk: Comparison, column: int) -> str:
    return f"Answer {LETTERS[column]}" if talk.blind else talk.stages[column]


def _card(title: str, column: int, body: str, figures: str, live: bool = False, best: bool = False) -> str:
    kind = " ".join(["card", *(["live"] if live else []), *(["best"] if best else [])])
    copy = '<button type="button" class="quiet" data-copy title="copy this answer">copy</button>'
    head = f'<header><h3 title="{safe(title)}">{safe(title)}</h3>{"" if live else copy}</header>'
    return f'<article class="{kind}" data-place="{column}">{head}{body}{figures}</article>'


def _text(text: str) -> str:
    return f'<div class="text" dir="auto">{safe(text)}</div>'


def _figures(answer: ColumnAnswer) -> str:
    parts = [
        (
            "score",
            None if answer.score is None else f"{answer.score:+.2f}",
            "reward model; the demonstrations' mean is 0",
        ),
        ("tokens", f"{answer.num_tokens}{'' if answer.finished else ' (cut)'}", "cut: it did not end by itself"),
        ("tokens/s", f"{answer.tokens_per_s:.0f}", "all columns are drawn together"),
        ("KL", None if answer.kl is None else f"{answer.kl:+.2f}", "nats from the reference over this answer"),
    ]
    rows = (
        f'<div title="{safe(explanation)}"><dt>{name}</dt><dd>{safe(value)}</dd></div>'
        for name, value, explanation in parts
        if value is not None
    )
    return f'<dl class="figures">{"".join(rows)}</dl>'


def _token(piece: Token) -> str:
    strength = min(1.0, abs(piece.gap) / FULL_COLOUR_AT)
    kind = "more" if piece.gap > 0 else "less"
    return (
        f'<span class="token {kind}" style="--s:{strength:.2f}" title="{piece.gap:+.2f} nats">{safe(piece.text)}</span>'
    )


def standings(rates: "Mapping[tuple[str, str], WinRate]") -> str:
    """The votes so far as a small table; empty without any."""
    if not rates:
        return ""
    cells = (
        (f"{safe(first)} beats {safe(second)}", _percent(rate), f"{rate.wins} / {rate.ties} / {rate.losses}")
        for (first, second), rate in rates.items()
    )
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
    head = "<tr><th>votes</th><th>95 % interval</th><th>won / tied / lost</th></tr>"
    return f'<table class="standings">{head}{rows}</table>'


def _percent(rate: "WinRate") -> str:
    if rate.rate is None or rate.low is None or rate.high is None:
        return ""
    return f"{100 * rate.rate:.0f} % ({100 * rate.low:.0f} to {100 * rate.high:.0f})"
