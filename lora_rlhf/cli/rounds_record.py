"""The table over rounds, and how good a reward model is on a policy's own answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_rlhf.data.schema import Prompt, Ranking
from lora_rlhf.runs.rounds import read_rounds


def rounds_rows(first: Path) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the table over rounds."""
    header = ["round", "from", "labels", "trained on", "reward accuracy before", "after", "wins against it", "gate"]
    rows = []
    for record in read_rounds(first):
        measured = record["measured"]
        rows.append(
            [
                *(str(record["number"]), record["from"], str(record["labels"]["asked"]), str(record["trained_on"])),
                *(_interval_text(measured.get(when), "mean") for when in ("before", "after")),
                *(_interval_text(record["win_rate"], "rate"), record["gate"]),
            ]
        )
    return header, rows


def _interval_text(value: Mapping[str, float] | None, name: str) -> str:
    return "-" if not value else f"{value[name]:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def reward_accuracy(run: Path, rankings: Sequence[Ranking], device: str, trust: bool = False) -> dict[str, Any] | None:
    """How often a run's reward model orders responses as their labeler did: the mean over prompts, with its interval.

    trust: whether the base's own code may run. None where all responses are tied.
    """
    from lora_rlhf.chat.loaded_run import load_run
    from lora_rlhf.stats.intervals import mean_interval

    shares = []
    with load_run(run, device=device, trust_remote_code=trust) as loaded:
        for ranking in rankings:
            scores = loaded.score(messages_of(ranking.prompt), ranking.responses)
            outcomes = [
                float(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
                for i, better in enumerate(ranking.ranks)
                for j, worse in enumerate(ranking.ranks)
                if better < worse
            ]
            shares += [sum(outcomes) / len(outcomes)] if outcomes else []
    if not shares:
        return None
    found = mean_interval(shares)  # of few prompts it reaches beyond what a share can be; of one it is not known
    return found._asdict() | {"low": max(0.0, found.low), "high": min(1.0, found.high)}


def messages_of(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in prompt.messages]
