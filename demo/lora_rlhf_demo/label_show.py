"""What the label tab shows beside the answers, as HTML of our own: the prompt, how far one has come, who agrees."""

from lora_rlhf.data.schema import Prompt
from lora_rlhf.stats.agreement import Alpha
from lora_rlhf_demo.label import Concord, Progress, Qualification
from lora_rlhf_demo.show import safe

NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


def prompt(shown: Prompt) -> str:
    """The conversation that is answered."""
    turns = (
        f'<div class="said {message.role}"><span class="who">{NAMES[message.role]}</span>'
        f'<div class="text" dir="auto">{safe(message.content)}</div></div>'
        for message in shown.messages
    )
    return f'<div class="prompt">{"".join(turns)}</div>'


def note(text: str, kind: str = "status") -> str:
    """A line on what happened. kind: status, or failure."""
    role = "alert" if kind == "failure" else "status"
    return f'<p class="note {kind}" role="{role}">{safe(text)}</p>' if text else ""


def progress(labeler: str, how: Progress, found: Qualification, wanted: float) -> str:
    """Who labels, how far they have come, and what the qualification said."""
    parts = [f'<p class="who">Labelling as <strong>{safe(labeler)}</strong></p>']
    if how.exam_total:
        parts.append(_bar("Qualification", how.exam_done, how.exam_total))
        if how.exam_done == how.exam_total:
            parts.append(f'<p class="small">{safe(qualified(found, wanted))}</p>')
    if how.total:
        parts.append(_bar("Prompts ranked", how.done, how.total))
    if how.skipped:
        parts.append(f'<p class="small">{how.skipped} skipped; they come again at the end</p>')
    return f'<div class="progress">{"".join(parts)}</div>'


def qualified(found: Qualification, wanted: float) -> str:
    """How the qualification went, in a sentence."""
    if found.rate is None:
        return "Nothing of the qualification was answered, so nothing is known of your agreement."
    told = f"You order {100 * found.rate:.0f} % of {found.pairs} pairs as the known answers do"
    if found.rate >= wanted:
        return f"{told}; {100 * wanted:.0f} % are asked for."
    return f"{told}, and {100 * wanted:.0f} % are asked for: read the guidelines again. You may go on."


def concord(found: Concord) -> str:
    """How far the labelers agree, as a small table."""
    alike = "no pair was ordered by two labelers yet"
    if found.pairs.rate is not None:
        alike = f"{100 * found.pairs.rate:.1f} % of {found.pairs.num_pairs:,}"
    rows = (
        ("Labelers", f"{found.labelers:,}", "people with a name in the file"),
        ("Rankings", f"{found.rankings:,}", "prompts ranked, by whomever"),
        ("Pairs ordered alike", alike, "of the pairs that both order strictly; InstructGPT's labelers: 72.6 %"),
        (
            "Alpha of preferences",
            _alpha(found.preferences),
            "Krippendorff's alpha over pairs, a tie half-way: 0 chance",
        ),
        ("Alpha of quality", _alpha(found.ratings), "Krippendorff's ordinal alpha over the ratings from 1 to 7"),
    )
    cells = "".join(f'<tr title="{safe(why)}"><th scope="row">{name}</th><td>{safe(value)}</td></tr>'
                    for name, value, why in rows)  # fmt: skip
    return f'<table class="concord">{cells}</table>'


def plain(text: str) -> str:
    """A file of guidelines, exactly as written."""
    return f'<div class="text" dir="auto">{safe(text)}</div>'


def _alpha(found: Alpha) -> str:
    return "not known yet" if found.alpha is None else f"{found.alpha:.2f} ({found.units:,} units)"


def _bar(name: str, done: int, total: int) -> str:
    return (
        f'<div class="bar"><span>{name}</span><span>{done:,} of {total:,}</span>'
        f'<progress max="{total}" value="{done}" aria-label="{name}"></progress></div>'
    )
