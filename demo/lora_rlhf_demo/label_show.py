"""HTML of the Label tab: the prompt, the labeler's progress, and how far labelers agree."""

from lora_rlhf.data.schema import Prompt
from lora_rlhf.stats.agreement import Alpha
from lora_rlhf_demo.label import LabelerAgreement, Progress, Qualification
from lora_rlhf_demo.show import safe_html

NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def prompt_html(prompt: Prompt) -> str:
    """The conversation that the answers belong to."""
    turns = (
        f'<div class="said {message.role}"><span class="who">{NAMES[message.role]}</span>'
        f'<div class="text" dir="auto">{safe_html(message.text)}</div></div>'
        for message in prompt.messages
    )
    whole = '<button type="button" class="whole" aria-expanded="false" hidden>Show all of the prompt</button>'
    return f'<div class="prompt folded">{"".join(turns)}</div>{whole}'


def note_html(text: str, kind: str = "status") -> str:
    """A line of text for the labeler. kind: status, or failure."""
    aria_role = "alert" if kind == "failure" else "status"
    return f'<p class="note {kind}" role="{aria_role}">{safe_html(text)}</p>' if text else ""


def progress_html(labeler: str, progress: Progress, qualification: Qualification, required_rate: float) -> str:
    """The labeler's name, their progress, and the result of the qualification.

    required_rate: the share of pairs that a labeler should order as the known answers do.
    """
    parts = [f'<p class="who">Labelling as <strong>{safe_html(labeler)}</strong></p>']
    if progress.exam_total:
        parts.append(_bar_html("Qualification", progress.exam_done, progress.exam_total))
        if progress.exam_done == progress.exam_total:
            parts.append(f'<p class="small">{safe_html(qualification_sentence(qualification, required_rate))}</p>')
    if progress.total:
        parts.append(_bar_html("Prompts ranked", progress.done, progress.total))
    if progress.skipped:
        parts.append(f'<p class="small">{progress.skipped} skipped; they come again at the end</p>')
    return f'<div class="progress">{"".join(parts)}</div>'


def qualification_sentence(qualification: Qualification, required_rate: float) -> str:
    """The result of the qualification in a sentence."""
    rate = qualification.rate
    if rate is None:
        return "Nothing of the qualification was answered, so nothing is known of your agreement."
    result = f"You order {100 * rate:.0f} % of {qualification.pairs} pairs as the known answers do"
    if rate >= required_rate:
        return f"{result}; {100 * required_rate:.0f} % are asked for."
    return f"{result}, and {100 * required_rate:.0f} % are asked for: read the guidelines again. You may go on."


def agreement_table(agreement: LabelerAgreement) -> str:
    """How far the labelers agree, as a small table."""
    pairs = "no pair was ordered by two labelers yet"
    if agreement.pairs.rate is not None:
        pairs = f"{100 * agreement.pairs.rate:.1f} % of {agreement.pairs.num_pairs:,}"
    rows = (
        ("Labelers", f"{agreement.labelers:,}", "people with a name in the file"),
        ("Rankings", f"{agreement.rankings:,}", "prompts ranked, by whomever"),
        ("Pairs ordered alike", pairs, "of the pairs that both order strictly; InstructGPT's labelers: 72.6 %"),
        (
            "Alpha of preferences",
            _alpha_text(agreement.preferences),
            "Krippendorff's alpha over pairs, a tie half-way: 0 chance",
        ),
        (
            "Alpha of quality",
            _alpha_text(agreement.ratings),
            "Krippendorff's ordinal alpha over the ratings from 1 to 7",
        ),
    )
    cells = "".join(f'<tr title="{safe_html(explanation)}"><th scope="row">{name}</th><td>{safe_html(value)}</td></tr>'
                    for name, value, explanation in rows)  # fmt: skip
    return f'<table class="agreement">{cells}</table>'


def _alpha_text(result: Alpha) -> str:
    return "not known yet" if result.alpha is None else f"{result.alpha:.2f} ({result.units:,} units)"


def _bar_html(name: str, done: int, total: int) -> str:
    """A progress bar with its name and both numbers."""
    return (
        f'<div class="bar"><span>{name}</span><span>{done:,} of {total:,}</span>'
        f'<progress max="{total}" value="{done}" aria-label="{name}"></progress></div>'
    )
