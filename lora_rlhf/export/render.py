"""The parity report as a table to read."""

from typing import Any

ROWS = (
    ("kl_per_token", "KL per token, nats", "{:.3g}"),
    ("rms_logit_error", "logit error, rms", "{:.3g}"),
    ("max_logit_error", "logit error, largest", "{:.3g}"),
    ("top1_agreement", "same most probable token", "{:.2%}"),
    ("same_response", "same greedy response", "{:.1%}"),
    ("greedy_identical", "the same {tokens} tokens, end or not", "{:.1%}"),
    ("greedy_agreement", "of these, before a difference", "{:.1%}"),
    ("reward_difference", "reward score difference", "{:.3g}"),
    ("score_difference", "score difference, mean", "{:.3g}"),
    ("max_score_difference", "score difference, largest", "{:.3g}"),
    ("same_order", "pairs in the same order", "{:.2%}"),
)
WIDTH = 18


def table(parity: dict[str, Any]) -> str:
    """How far from the trained model the export is, the other way to merge, and the base without the adapter."""
    if not parity["measured"]:
        return f"not compared with the trained model ({parity['why']})"
    columns = {
        "this export": parity["export"],
        f"on {parity['alternative']['mode']} base": parity["alternative"],
        "without adapter": parity["adapter_effect"],
    }
    lines = [
        f"{parity['positions']} positions of {parity['prompts']} prompts: {parity['prompts_from']}",
        " " * 34 + "".join(f"{name:>{WIDTH}}" for name in columns),
    ]
    for key, title, shape in ROWS:
        if key in parity["export"]:
            cells = (shape.format(figures[key]) if key in figures else "" for figures in columns.values())
            title = title.format(tokens=parity.get("greedy_tokens"))
            lines.append(f"{title:<34}" + "".join(f"{cell:>{WIDTH}}" for cell in cells))
    return "\n".join(lines)
