"""HTML of the Compare tab. Texts of people and models are always escaped."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from lora_rlhf.system.shown_text import for_html
from lora_rlhf_demo.compare import LETTERS, Comparison
from lora_rlhf_demo.requests import ColumnAnswer, Token
from lora_rlhf_demo.runs import NO_RUNS, RunState

if TYPE_CHECKING:
    from lora_rlhf.stats.win_rates import WinRate

FULL_COLOUR_AT = 3.0  # nats at which a token's colour is full
MAX_TEXT_CHARACTERS = 200_000  # characters of one text


def safe_html(text: str) -> str:
    """A text as HTML that displays exactly its characters."""
    cut_text = (
        text if len(text) <= MAX_TEXT_CHARACTERS else f"{text[:MAX_TEXT_CHARACTERS]} ... ({len(text)} characters)"
    )
    return for_html(cut_text)


def turns_html(
    comparison: Comparison, has_colours: bool = False, answer_html: Callable[[str], str] | None = None
) -> str:
    """All turns. has_colours: colour each token by its log-probability minus that under the reference.

    answer_html: draws an answer without colours; as it is written unless given.
    """
    if not comparison.turns:
        return ""
    draw = answer_html or text_html
    turns = (_turn_html(comparison, index, has_colours, draw) for index in range(len(comparison.turns)))
    return f'<div class="talk">{"".join(turns)}</div>'


def live_turn_html(comparison: Comparison, question: str, texts: Sequence[str], note: str = "") -> str:
    """The turn that is being answered: the texts so far, one of each column, and a status line."""
    cards = [
        _card_html(_column_title(comparison, column), column, text_html(text), "", is_live=True)
        for column, text in enumerate(texts)
    ]
    status = f'<p class="status" role="status">{safe_html(note)}</p>' if note else ""
    return f'<div class="talk">{_turn_section_html(_question_html(question), cards)}{status}</div>'


def notice_html(text: str) -> str:
    """A status line or a hint in place of answers; empty without text."""
    return f'<div class="talk"><p class="status" role="status">{safe_html(text)}</p></div>' if text else ""


def invitation_html(columns: Sequence[str], examples: Sequence[str], is_blind: bool = False) -> str:
    """What an empty page says: who will answer, and prompts of the run that a click puts into the box."""
    if not columns:
        return notice_html("Choose a column.")
    buttons = "".join(
        f'<button type="button" class="example" data-example>{safe_html(text)}</button>' for text in examples
    )
    about = '<p class="status">This run knows such prompts:</p>' if examples else ""
    rule = " Their names are hidden until you vote." if is_blind else ""
    sentence = safe_html(f"Ask something: {', '.join(columns)} answer side by side.{rule}")
    status = f'<p class="status" role="status">{sentence}</p>'
    return f'<div class="talk">{status}{about}<div class="examples">{buttons}</div></div>'


def line_html(text: str) -> str:
    """A small line of text."""
    return f'<p class="line">{safe_html(text)}</p>'


def no_runs_html(runs: Sequence[RunState], root: str) -> str:
    """How to make a first run, and what each existing run lacks."""
    items = "".join(f"<li>{safe_html(run.note)}</li>" for run in runs)
    unfinished = f"<p>There, but without a finished SFT stage:</p><ul>{items}</ul>" if items else ""
    return f'<div class="talk" id="no-runs"><p>{safe_html(NO_RUNS.format(root=root))}</p>{unfinished}</div>'


def failure_html(reason: str) -> str:
    """An error message in place of answers."""
    return f'<div class="talk"><p class="failure" role="alert">{safe_html(reason)}</p></div>'


def tokens_html(pieces: Sequence[Token]) -> str:
    """A text whose tokens are coloured by their gap: blue if the stage gives it more probability than the reference."""
    return '<div class="text" dir="auto">' + "".join(map(_token_html, pieces)) + "</div>"


def _turn_html(comparison: Comparison, turn_index: int, has_colours: bool, answer_html: Callable[[str], str]) -> str:
    """The question and the answer cards of one turn, without names and figures while it waits for a vote."""
    turn = comparison.turns[turn_index]
    is_hidden = turn.is_hidden
    cards = []
    for column, (stage, answer) in enumerate(zip(turn.stages, turn.answers, strict=True)):
        title = f"Answer {LETTERS[column]}"
        if not is_hidden:
            title = stage if turn.ranks is None else f"{stage} (was {LETTERS[column]}, rank {turn.ranks[column]})"
        # colours and figures would reveal a hidden model: the base, for example, is often its own reference
        is_coloured = has_colours and answer.tokens and not is_hidden
        body = tokens_html(answer.tokens) if is_coloured else answer_html(answer.text)
        if not answer.text:
            body = '<div class="text"><em>empty</em></div>'
        if turn_index == len(comparison.turns) - 1 and turn.can_go_on(column):
            title_of_button = "this answer was cut: let it go on from here"
            body += (
                f'<button type="button" class="quiet" data-go-on="{column}" title="{title_of_button}">go on</button>'
            )
        figures = "" if is_hidden else _figures_html(answer)
        cards.append(
            _card_html(title, column, body, figures, is_best=turn.ranks is not None and turn.ranks[column] == 1)
        )
    edit = (
        f'<button type="button" class="quiet" data-edit="{turn_index}" '
        'title="take this question back into the box; the conversation as it is stays under Earlier">edit</button>'
    )
    if turn.versions and turn_index == len(comparison.turns) - 1:
        title = "the answers of another version; the conversation goes on from those that are shown"
        edit += (
            f'<button type="button" class="quiet" data-version title="{title}">'
            f"version {turn.number} of {len(turn.versions) + 1} &gt;</button>"
        )
    return _turn_section_html(_question_html(turn.question, edit), cards)


def _question_html(text: str, edit: str = "") -> str:
    return f'<div class="asked"><div class="question text" dir="auto">{safe_html(text)}</div>{edit}</div>'


def _turn_section_html(question: str, cards: Sequence[str]) -> str:
    title = '<h2 class="sr-only">Question</h2>'  # for a screen reader, which goes from heading to heading
    return f'<section class="turn">{title}{question}<div class="cards">{"".join(cards)}</div></section>'


def _column_title(comparison: Comparison, column: int) -> str:
    return f"Answer {LETTERS[column]}" if comparison.is_blind else comparison.stages[column]


def _card_html(title: str, column: int, body: str, figures: str, is_live: bool = False, is_best: bool = False) -> str:
    """The card of one answer. is_live: it is still being written. is_best: it won the vote."""
    kind = " ".join(["card", *(["live"] if is_live else []), *(["best"] if is_best else [])])
    copy = '<button type="button" class="quiet" data-copy title="copy this answer">copy</button>'
    head = f'<header><h3 title="{safe_html(title)}">{safe_html(title)}</h3>{"" if is_live else copy}</header>'
    return f'<article class="{kind}" data-place="{column}">{head}{body}{figures}</article>'


def text_html(text: str) -> str:
    """A text exactly as it is written."""
    return f'<div class="text" dir="auto">{safe_html(text)}</div>'


def _figures_html(answer: ColumnAnswer) -> str:
    """The score, length, speed and KL of one answer."""
    parts = [
        (
            "score",
            None if answer.score is None else f"{answer.score:+.2f}",
            "reward model; the demonstrations' mean is 0",
        ),
        (
            "tokens",
            f"{answer.num_tokens}{'' if answer.finished else ' (cut)'}",
            "its end token included" if answer.finished else "cut: it did not end by itself",
        ),
        ("tokens/s", f"{answer.tokens_per_s:.0f}", "its tokens until it ended; all columns are drawn together"),
        ("KL", None if answer.kl is None else f"{answer.kl:+.2f}", "nats from the reference over this answer"),
    ]
    rows = (
        f'<div title="{safe_html(explanation)}"><dt>{name}</dt><dd>{safe_html(value)}</dd></div>'
        for name, value, explanation in parts
        if value is not None
    )
    return f'<dl class="figures">{"".join(rows)}</dl>'


def _token_html(piece: Token) -> str:
    """A token, the stronger coloured the larger its gap is."""
    strength = min(1.0, abs(piece.gap) / FULL_COLOUR_AT)
    kind = "more" if piece.gap > 0 else "less"
    style = f'class="token {kind}" style="--s:{strength:.2f}"'
    return f'<span {style} title="{piece.gap:+.2f} nats">{safe_html(piece.text)}</span>'


def standings_table(rates: "Mapping[tuple[str, str], WinRate]") -> str:
    """The result of the votes as a small table; empty without votes."""
    if not rates:
        return ""
    cells = (
        (
            f"{safe_html(first)} beats {safe_html(second)}",
            _rate_text(rate),
            f"{rate.wins} / {rate.ties} / {rate.losses}",
        )
        for (first, second), rate in rates.items()
    )
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
    head = "<tr><th>votes</th><th>95 % interval</th><th>won / tied / lost</th></tr>"
    return f'<table class="standings">{head}{rows}</table>'


def _rate_text(win_rate: "WinRate") -> str:
    """A win rate with its interval in percent; empty if it is not known."""
    if win_rate.rate is None or win_rate.low is None or win_rate.high is None:
        return ""
    return f"{100 * win_rate.rate:.0f} % ({100 * win_rate.low:.0f} to {100 * win_rate.high:.0f})"
