"""The tiny world's data files: demonstrations and prompts drawn from it, and rankings by its simulated labelers."""

import dataclasses
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.labels import Agreement, ranking_agreement
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Prompt, Text, make_row, require_ended
from lora_rlhf.data.sources import read_prompts
from lora_rlhf.system.errors import UserError
from lora_rlhf.tinyworld.config import PROMPT_SETS, LabelConfig, TinyworldConfig
from lora_rlhf.tinyworld.labelers import make_labelers
from lora_rlhf.tinyworld.requests import draw_requests, find_request
from lora_rlhf.tinyworld.scrape import Scrape
from lora_rlhf.tinyworld.writers import make_writers

OVERLAP_LABELERS = 5  # labelers that rank each prompt of the agreement file


def make(config: TinyworldConfig) -> dict[str, int]:
    """Writes every data file; the same configuration writes the same bytes. Returns the rows of each file."""
    Path(config.to).mkdir(parents=True, exist_ok=True)
    used_prompts: set[str] = set()
    counts = {}
    for name, path in config.path_by_set.items():
        rows = _iterate_rows(name, f"{name}-{config.seed}", used_prompts)
        counts[name] = write_jsonl(path, itertools.islice(rows, config.num_rows_by_set[name]))
    return counts


def _iterate_rows(name: str, seed: str, used_prompts: set[str]) -> Iterator[dict[str, Any]]:
    """Endless rows of a set. used_prompts: texts that must not be drawn; drawn texts are added."""
    if name == "pretraining":
        yield from (make_row(Text(text)) for text in Scrape(seed))
        return
    rng, all_writers = random.Random(seed), make_writers()
    for request in draw_requests(rng, is_held_out=name in PROMPT_SETS[True], used_texts=used_prompts):
        prompt = dataclasses.replace(Prompt.of(request.text), meta={"use_case": request.skill.use_case})
        if name == "demonstrations":
            yield make_row(Demonstration(prompt, rng.choice(all_writers).write(request, rng)))
        else:
            yield make_row(prompt)


def label(config: LabelConfig) -> Agreement | None:
    """Writes the rankings and, if configured, the agreement file; returns the agreement measured on it."""
    prompts_and_responses = _read_prompts_and_responses(config.responses)
    for path in (config.to, config.agreement_to):
        Path(path or config.to).parent.mkdir(parents=True, exist_ok=True)
    all_labelers = make_labelers()
    rng = random.Random(f"label-{config.seed}")
    rankings = []
    for prompt, responses, ended in prompts_and_responses:
        ranking = rng.choice(all_labelers).rank(prompt, responses, rng, ended)
        if config.shuffle_labels:
            ranking = dataclasses.replace(ranking, ranks=tuple(rng.sample(ranking.ranks, len(ranking.ranks))))
        rankings.append(ranking)
    write_jsonl(config.to, map(make_row, rankings))
    if config.agreement_to is None:
        return None
    rng = random.Random(f"agreement-{config.seed}")
    overlapping_rankings = [
        labeler.rank(prompt, responses, rng, ended)
        for prompt, responses, ended in prompts_and_responses[: config.overlap]
        for labeler in rng.sample(all_labelers, OVERLAP_LABELERS)
    ]
    write_jsonl(config.agreement_to, map(make_row, overlapping_rankings))
    return ranking_agreement(overlapping_rankings)


def _read_prompts_and_responses(path: str) -> list[tuple[Prompt, list[str], tuple[bool, ...]]]:
    """Prompts, their responses and which of them ended. UserError names the first row that labelers cannot rank."""
    prompts_and_responses = []
    for prompt in read_prompts(path, strict=True)[0]:
        meta = dict(prompt.meta)
        responses = meta.pop("responses", None)
        if not isinstance(responses, list) or not all(isinstance(response, str) for response in responses):
            raise UserError(f"{prompt.origin}: no list of responses; write this file with `lora-rlhf sample`")
        try:
            ended = require_ended(meta.pop("ended", None), len(responses))
        except BadRow as fault:
            raise UserError(f"{prompt.origin}: {fault}; write this file with `lora-rlhf sample`") from fault
        # a sampled response may be empty or equal to another one, and neither can be ranked
        indices = {response.strip(): index for index, response in enumerate(responses) if response.strip()}.values()
        ended = tuple(ended[index] for index in indices) if ended else ()
        responses = [responses[index] for index in indices]
        if len(responses) < 2:
            raise UserError(f"{prompt.origin}: a ranking needs at least 2 different responses, got {len(responses)}")
        if find_request(prompt.messages[-1].content) is None:
            raise UserError(
                f"{prompt.origin}: {prompt.messages[-1].content!r} is not a prompt of the tiny world; its labelers can "
                "rank no other"
            )
        prompts_and_responses.append((dataclasses.replace(prompt, meta=meta), responses, ended))
    return prompts_and_responses
