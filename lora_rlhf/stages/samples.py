"""Quick figures while a stage trains: what the model says to the same few prompts, or how it scores the same rankings.

They are drawn from a seed of their own, so training is the same with them as it would be without.
"""

from collections.abc import Sequence
from typing import Any

import torch

from lora_rlhf.configs.stages import SFTConfig
from lora_rlhf.data.encode import EncodedExample, EncodedRanking
from lora_rlhf.data.template import decode_response
from lora_rlhf.model.generate import Response, draw_seeds
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.reward_scores import score_rankings
from lora_rlhf.stages.sampler import Sampler
from lora_rlhf.stats.ordering import ordering_report
from lora_rlhf.stats.text_metrics import distinct_ratio, repeated_gram_share

FIXED = 8  # prompts whose responses are recorded over time
RANKINGS = 32  # held-out rankings that are scored over time
TIMES = 8  # how often in a reward stage

Figures = dict[str, float]


def text_figures(texts: Sequence[str]) -> Figures:
    """What collapses first when training goes wrong: variety over all texts, and within each."""
    figures = {"samples/repetition": sum(map(repeated_gram_share, texts)) / len(texts)}
    pairs = distinct_ratio(texts, 2)
    return figures if pairs is None else {**figures, "samples/distinct_2": pairs}


def sample_rows(prompts: Sequence[str], texts: Sequence[str], responses: Sequence[Response]) -> list[dict[str, Any]]:
    """A row of samples.jsonl for each prompt and its response."""
    return [
        {"prompt": prompt, "response": text, "tokens": len(response.ids)}
        for prompt, text, response in zip(prompts, texts, responses, strict=True)
    ]


def sft_samples(
    config: SFTConfig, model: SharedModel, examples: Sequence[EncodedExample]
) -> tuple[Figures, list[dict[str, Any]]]:
    """Figures, and a row for each example: what the model answers at temperature 1."""
    generator = torch.Generator().manual_seed(config.seed)
    groups = Sampler(config, model, "sft").sample(
        [example.prompt_ids for example in examples],
        draw_seeds(generator, len(examples), 1),
        "the answers that are recorded over time",
    )
    answers = [group[0] for group in groups]
    texts = [decode_response(model.tokenizer, answer.ids).strip() for answer in answers]
    figures = {
        "samples/length": sum(len(answer.ids) for answer in answers) / len(answers),
        "samples/eos_rate": sum(answer.finished for answer in answers) / len(answers),
        **text_figures(texts),
    }
    return figures, sample_rows([model.tokenizer.decode(example.prompt_ids) for example in examples], texts, answers)


def ranking_figures(model: SharedModel, rankings: Sequence[EncodedRanking], batch: AutoBatch) -> Figures:
    """How the reward model orders the same held-out rankings: accuracy, ECE, and how it hangs on length."""
    scores = score_rankings(model, rankings, batch)
    lengths = [[len(ids) for ids in ranking.response_ids] for ranking in rankings]
    report = ordering_report([ranking.ranks for ranking in rankings], scores, lengths)
    return {
        "samples/accuracy": report["accuracy"]["rate"],
        "samples/ece": report["ece"],
        "samples/length_correlation": report["length_correlation"],
    }
