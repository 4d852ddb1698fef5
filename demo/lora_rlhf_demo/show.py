"""What the page shows of conversations, as HTML of our own in which nothing that anybody wrote is ever markup."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lora_rlhf_demo.compare import LETTERS, Comparison
from lora_rlhf_demo.requests import Answer, Token
from lora_rlhf_demo.runs import NO_RUNS, RunState

if TYPE_CHECKING:
    from lora_rlhf.stats.win_rates import WinRate

CLEAR_AT = 3.0  # nats at which a token's colour is full
LONGEST_SHOWN = 200_000  # characters of one text
# Control characters would be invisible, or worse, be acted on by who copies the text: their pictures are shown.
PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
PICTURES |= {code: 0xFFFD for code in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def safe(text: str) -> str:
    """A text as HTML that shows exactly its characters."""
    cut = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} ... ({len(text)} characters)"
    return html.escape(cut.translate(PICTURES), quote=True)


def page(talk: Comparison, differences: bool = False) -> str:
    """The turns so far. differences: colour each token by how much likelier its stage finds it than the reference."""
    if not talk.turns:
        return ""
    return f'<div class="talk">{"".join(_turn(talk, place, differences) for place in range(len(talk.turns)))}</div>'


def live(talk: Comparison, asked: str, partial: Sequence[str], note: str = "") -> str:
    """The turn that is being answered, as far as it goes, and a line on what is going on."""
    cards = [_card(_title(talk, place), place, _text(text), "", live=True) for place, text in enumerate(partial)]
    status = f'<p class="status" role="status">{safe(note)}</p>' if note else ""
    return f'<div class="talk">{_row(_question(asked), cards)}{status}</div>'


def notice(text: str) -> str:
    """A line in place of answers: what is going on, or what to do."""
    return f'<div class="talk"><p class="status" role="status">{safe(text)}</p></div>' if text else ""


def line(text: str) -> str:
    """A small line of text."""
    return f'<p class="line">{safe(text)}</p>'


def no_runs(runs: Sequence[RunState], root: str) -> str:
    """What to do first; and what is wrong with the runs that are there."""
    there = "".join(f"<li>{safe(run.note)}</li>" for run in runs)
    found = f"<p>There, but without a finished SFT stage:</p><ul>{there}</ul>" if there else ""
    return f'<div class="talk" id="no-runs"><p>{safe(NO_RUNS.format(root=root))}</p>{found}</div>'


def failure(reason: str) -> str:
    """A message in place of answers."""
    return f'<div class="talk"><p class="failure" role="alert">{safe(reason)}</p></div>'


def tokens(pieces: Sequence[Token]) -> str:
    """A text whose tokens are coloured by their gap: blue where the stage likes it more than the reference does."""
    return '<div class="text" dir="auto">' + "".join(map(_token, pieces)) + "</div>"


def _turn(talk: Comparison, number: int, differences: bool) -> str:
    turn = talk.turns[number]
    hidden = talk.blind and turn.ranks is None
    cards = []
    for place, (stage, answer) in enumerate(zip(turn.stages, turn.answers, strict=True)):
        title = f"Answer {LETTERS[place]}"
        if not hidden:
            title = stage if turn.ranks is None else f"{stage} (was {LETTERS[place]}, rank {turn.ranks[place]})"
        # of a hidden answer nothing is shown that gives it away: the base, for one, is often its own reference
        shown = tokens(answer.tokens) if differences and answer.tokens and not hidden else _text(answer.text)
        if not answer.text:
            shown = '<div class="text"><em>empty</em></div>'
        figures = "" if hidden else _figures(answer)
        cards.append(_card(title, place, shown, figures, best=turn.ranks is not None and turn.ranks[place] == 1))
    edit = (
        f'<button type="button" class="quiet" data-edit="{number}" '
        'title="take this question back into the box; what came after it goes">edit</button>'
    )
    return _row(_question(turn.question, edit), cards)


def _question(text: str, edit: str = "") -> str:
    return f'<div class="asked"><div class="question text" dir="auto">{safe(text)}</div>{edit}</div>'


def _row(question: str, cards: Sequence[str]) -> str:
    return f'<section class="turn">{question}<div class="cards">{"".join(cards)}</div></section>'


def _title(talk: Comparison, place: int) -> str:
    return f"Answer {LETTERS[place]}" if talk.blind else talk.stages[place]


def _card(title: str, place: int, shown: str, figures: str, live: bool = False, best: bool = False) -> str:
    kind = " ".join(["card", *(["live"] if live else []), *(["best"] if best else [])])
    copy = '<button type="button" class="quiet" data-copy title="copy this answer">copy</button>'
    head = f'<header><h3 title="{safe(title)}">{safe(title)}</h3>{"" if live else copy}</header>'
    return f'<article class="{kind}" data-place="{place}">{head}{shown}{figures}</article>'


def _text(text: str) -> str:
    return f'<div class="text" dir="auto">{safe(text)}</div>'


def _figures(answer: Answer) -> str:
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
        f'<div title="{safe(why)}"><dt>{name}</dt><dd>{safe(value)}</dd></div>'
        for name, value, why in parts
        if value is not None
    )
    return f'<dl class="figures">{"".join(rows)}</dl>'


def _token(piece: Token) -> str:
    strength = min(1.0, abs(piece.gap) / CLEAR_AT)
    kind = "more" if piece.gap > 0 else "less"
    return (
        f'<span class="token {kind}" style="--s:{strength:.2f}" title="{piece.gap:+.2f} nats">{safe(piece.text)}</span>'
    )


def standings(found: "Mapping[tuple[str, str], WinRate]") -> str:
    """The votes so far as a small table; empty without any."""
    if not found:
        return ""
    cells = (
        (f"{safe(one)} beats {safe(other)}", _percent(rate), f"{rate.wins} / {rate.ties} / {rate.losses}")
        for (one, other), rate in found.items()
    )
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
    head = "<tr><th>votes</th><th>95 % interval</th><th>won / tied / lost</th></tr>"
    return f'<table class="standings">{head}{rows}</table>'


def _percent(rate: "WinRate") -> str:
    if rate.rate is None or rate.low is None or rate.high is None:
        return ""
    return f"{100 * rate.rate:.0f} % ({100 * rate.low:.0f} to {100 * rate.high:.0f})"
