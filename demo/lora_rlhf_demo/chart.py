"""HTML of the Watch tab beside its charts: the legend, the states of stages, the samples over time."""

from collections.abc import Sequence

from lora_rlhf_demo.show import safe_html
from lora_rlhf_demo.watch import Sample, StageState


def legend_html(runs: Sequence[str]) -> str:
    """The list of runs, each with its colour."""
    items = (f'<li><i class="run{index}"></i>{safe_html(run)}</li>' for index, run in enumerate(runs))
    return f'<ul class="legend">{"".join(items)}</ul>'


def states_table(stage_states: Sequence[StageState]) -> str:
    """The state of every stage, as a table; empty without stages."""
    rows = "".join(map(_state_row, stage_states))
    head = "<tr><th>Run</th><th>Stage</th><th>State</th><th>Step</th><th>Left</th></tr>"
    return f'<table class="states">{head}{rows}</table>' if rows else ""


def _state_row(state: StageState) -> str:
    step = "" if state.step is None else f"{state.step:,}"
    bar = ""
    if state.total is not None and state.step is not None:
        step += f" of {state.total:,}"
        if state.is_live:
            bar = (
                f'<progress value="{state.step}" max="{state.total}" aria-label="{safe_html(state.stage)}"></progress>'
            )
    left = "" if state.seconds_left is None else f"about {duration(state.seconds_left)}"
    kind = ' class="live"' if state.is_live else ""
    cells = f"<td>{safe_html(state.run)}</td><td>{safe_html(state.stage)}</td><td>{safe_html(state.state)}</td>"
    return f"<tr{kind}>{cells}<td>{step}{bar}</td><td>{left}</td></tr>"


def duration(seconds: float) -> str:
    """A time that is left, in its two largest units."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return (
        f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes // 1440} d {minutes // 60 % 24} h"
    )


def samples_html(samples: Sequence[Sample], has_run_names: bool) -> str:
    """The answers to fixed prompts over time; empty without samples. has_run_names: show the run of each sample."""
    cards = []
    for run, prompt, responses in samples:
        name = f'<span class="who">{safe_html(run)}</span>' if has_run_names else ""
        rows = "".join(
            f'<li><span class="step">{step:,}</span><div class="text" dir="auto">{safe_html(text)}</div></li>'
            for step, text in responses
        )
        question = f'<div class="text asked" dir="auto">{safe_html(prompt)}</div>'
        cards.append(f'<article class="sample">{name}{question}<ol>{rows}</ol></article>')
    return f'<div class="samples">{"".join(cards)}</div>' if cards else ""
