"""The audit as a section of the report: who the sides are, and what the reward model is held against."""

from typing import Any

from lora_rlhf.evaluate.contest import Contest
from lora_rlhf.evaluate.measuring import Measured
from lora_rlhf.judges.scores import ScoreJudge, prompt_text
from lora_rlhf.probes.audit import Side, audit


def run_audit(contest: Contest, measured: Measured, failed: dict[str, dict[str, list[bool]]]) -> dict[str, Any]:
    """The report's "audit". failed: {system: {bin: whether each of its cases failed}}; empty without probes.

    Where the reward model itself is the judge, nobody says how good answers are, and the flags that need it are left
    out.
    """
    compared, independent = contest.compared, contest.judge.name != "reward"

    def side(name: str) -> Side:
        columns = measured[name]
        values = {key: [float(v or 0.0) for v in column.values] for key, column in columns.items()}
        scored = independent and isinstance(contest.judge, ScoreJudge)
        return Side(
            [answer.text for answer in contest.answers[name]],
            quality=values["score"] if scored else None,
            rewards=values.get("reward_score"),
            kl=values.get("kl_per_response"),
            failed=failed.get(name, {}),
        )

    others = [side(name) for name in compared.names if name not in (compared.candidate, compared.baseline)]
    outcomes = contest.outcomes[f"{compared.candidate}_vs_{compared.baseline}"] if independent else None
    asked = [prompt_text(prompt.prompt) for prompt in contest.prompts]
    return audit(asked, side(compared.candidate), side(compared.baseline), others, outcomes)
