"""Quick figures while a stage trains: what the model says to the same few prompts, or how it scores the same rankings.

They are drawn from a seed of their own, so training is the same with them as it would be without.
"""

from collections.abc import Sequence
from typing import Any

import torch

from lora_rlhf.configs.stages import PPOConfig, SFTConfig
from lora_rlhf.data.encode import EncodedExample, EncodedPrompt, EncodedRanking
from lora_rlhf.data.template import decode_response, stop_ids
from lora_rlhf.model.generate import GeneratedResponse, generate
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages.decoding import Decoding
from lora_rlhf.stages.fitting import Pieces
from lora_rlhf.stages.learning import NotFinite
from lora_rlhf.stages.reward_scores import score_rankings
from lora_rlhf.stages.rollout import Judge, act, collect, describe
from lora_rlhf.stats.ordering import ordering_report
from lora_rlhf.stats.text_metrics import distinct, repetition

FIXED = 8  # prompts whose responses are recorded over time
RANKINGS = 32  # held-out rankings that are scored over time
TIMES = 8  # how often in a reward stage

Figures = dict[str, float]


def text_figures(texts: Sequence[str]) -> Figures:
    """What collapses first when training goes wrong: variety over all texts, and within each."""
    found = {"samples/repetition": sum(map(repetition, texts)) / len(texts)}
    pairs = distinct(texts, 2)
    return found if pairs is None else {**found, "samples/distinct_2": pairs}


def of_policy(
    config: PPOConfig,
    model: SharedModel,
    judge: Judge,
    prompts: list[EncodedPrompt],
    sampled: Pieces,
    pieces: Pieces,
    how: Decoding,
) -> tuple[Figures, list[dict[str, Any]]]:
    """Figures, and a row for each prompt: its first response, with score, KL from the reference (k1, nats) and tokens.

    Without what has to be judged, where that is no number: the next iteration says what is wrong.
    """
    answers = act(config, model, prompts, torch.Generator().manual_seed(config.seed), sampled, how=how)
    texts = [decode_response(model.tokenizer, answer.ids).strip() for answer in answers]
    every = config.samples_per_prompt
    rows: list[dict[str, Any]] = [
        {"prompt": prompt.prompt.messages[-1].content, "response": text, "tokens": len(answer.ids)}
        for prompt, answer, text in zip(prompts, answers[::every], texts[::every], strict=True)
    ]
    figures = text_figures(texts)
    try:
        rollout = collect(config, model, judge, prompts, answers, pieces)
    except NotFinite:
        return figures, rows
    distances = (rollout.old_logprobs - rollout.ref_logprobs).sum(dim=1)[::every]
    for row, score, distance in zip(rows, rollout.scores[::every].tolist(), distances.tolist(), strict=True):
        row |= {"score": score, "kl": distance}
    judged = describe(config, rollout)
    shown = ("score", "kl", "length", "eos_rate", "entropy")
    return figures | {f"samples/{name}": judged[f"rollout/{name}"] for name in shown}, rows


def of_sft(
    config: SFTConfig, model: SharedModel, examples: Sequence[EncodedExample], pieces: Pieces
) -> tuple[Figures, list[dict[str, Any]]]:
    """Figures, and a row for each example: what the model answers at temperature 1."""

    def answer(size: int) -> list[list[GeneratedResponse]]:
        with model.role("sft"):
            return generate(
                model,
                [example.prompt_ids for example in examples],
                max_new_tokens=config.max_response_tokens,
                temperature=1.0,
                stop_ids=stop_ids(model.tokenizer),
                generator=torch.Generator().manual_seed(config.seed),
                batch_size=size,
            )

    answers = [group[0] for group in pieces.run(answer, "the answers that are recorded over time")]
    texts = [decode_response(model.tokenizer, one.ids).strip() for one in answers]
    figures = {
        "samples/length": sum(len(one.ids) for one in answers) / len(answers),
        "samples/eos_rate": sum(one.finished for one in answers) / len(answers),
        **text_figures(texts),
    }
    asked = [model.tokenizer.decode(example.prompt_ids) for example in examples]
    rows = zip(asked, texts, answers, strict=True)
    return figures, [{"prompt": prompt, "response": text, "tokens": len(one.ids)} for prompt, text, one in rows]


def of_reward(model: SharedModel, rankings: Sequence[EncodedRanking], pieces: Pieces) -> Figures:
    """How the reward model orders the same held-out rankings: accuracy, ECE, and how it hangs on length."""
    scores = score_rankings(model, rankings, pieces, 0.0)
    lengths = [[len(ids) for ids in ranking.response_ids] for ranking in rankings]
    report = ordering_report([ranking.ranks for ranking in rankings], scores, lengths)
    return {
        "samples/accuracy": report["accuracy"]["rate"],
        "samples/ece": report["ece"],
        "samples/length_correlation": report["length_correlation"],
    }
