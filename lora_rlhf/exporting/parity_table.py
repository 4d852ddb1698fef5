"""The parity report as a table to read."""

from typing import Any

from lora_rlhf.render.tables import align_columns

TABLE_ROWS = (
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
COLUMN_WIDTHS = (34, 18, 18, 18)  # characters of a column


def parity_table(parity: dict[str, Any]) -> str:
    """The table: how far the export, the other way to merge, and the base alone are from the trained model."""
    if not parity["measured"]:
        return f"not compared with the trained model ({parity['why']})"
    models = {
        "this export": parity["export"],
        f"on {parity['alternative']['mode']} base": parity["alternative"],
        "without adapter": parity["adapter_effect"],
    }
    rows = [["", *models]]
    for key, title, pattern in TABLE_ROWS:
        if key in parity["export"]:
            cells = (pattern.format(figures[key]) if key in figures else "" for figures in models.values())
            rows.append([title.format(tokens=parity.get("greedy_tokens")), *cells])
    origin = f"{parity['positions']} positions of {parity['prompts']} prompts: {parity['prompts_from']}"
    return "\n".join([origin, *align_columns(rows, "<>>>", COLUMN_WIDTHS)])
