"""The tiny world's data files: demonstrations and prompts drawn from it, and rankings by its simulated labelers."""

import dataclasses
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.labels import Agreement, agreement
from lora_rlhf.data.schema import Demonstration, Prompt, Text, row_of
from lora_rlhf.data.sources import read_prompts
from lora_rlhf.system.errors import UserError
from lora_rlhf.tinyworld.config import PROMPT_SETS, LabelConfig, TinyworldConfig
from lora_rlhf.tinyworld.labelers import labelers
from lora_rlhf.tinyworld.requests import draw, find
from lora_rlhf.tinyworld.scrape import Scrape
from lora_rlhf.tinyworld.writers import writers

OVERLAP_LABELERS = 5  # labelers that rank each prompt of the agreement file


def make(config: TinyworldConfig) -> dict[str, int]:
    """Writes every data file; the same configuration writes the same bytes. Returns the rows of each file."""
    Path(config.to).mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    counts = {}
    for name, path in config.files.items():
        rows = _rows(name, f"{name}-{config.seed}", seen)
        counts[name] = write_jsonl(path, itertools.islice(rows, config.sets[name]))
    return counts


def _rows(name: str, seed: str, seen: set[str]) -> Iterator[dict[str, Any]]:
    """Endless rows of a set."""
    if name == "pretraining":
        yield from (row_of(Text(text)) for text in Scrape(seed))
        return
    rng, people = random.Random(seed), writers()
    for request in draw(rng, held_out=name in PROMPT_SETS[True], seen=seen):
        prompt = dataclasses.replace(Prompt.of(request.text), meta={"use_case": request.skill.use_case})
        if name == "demonstrations":
            yield row_of(Demonstration(prompt, rng.choice(people).write(request, rng)))
        else:
            yield row_of(prompt)


def label(config: LabelConfig) -> Agreement | None:
    """Writes the rankings and, if configured, the agreement file; returns the agreement measured on it."""
    prompts = _read_responses(config.responses)
    for path in (config.to, config.agreement_to):
        Path(path or config.to).parent.mkdir(parents=True, exist_ok=True)
    people = labelers()
    rng = random.Random(f"label-{config.seed}")
    rankings = []
    for prompt, responses in prompts:
        ranking = rng.choice(people).rank(prompt, responses, rng)
        if config.shuffle_labels:
            ranking = dataclasses.replace(ranking, ranks=tuple(rng.sample(ranking.ranks, len(ranking.ranks))))
        rankings.append(ranking)
    write_jsonl(config.to, map(row_of, rankings))
    if config.agreement_to is None:
        return None
    rng = random.Random(f"agreement-{config.seed}")
    overlapping = [
        labeler.rank(prompt, responses, rng)
        for prompt, responses in prompts[: config.overlap]
        for labeler in rng.sample(people, OVERLAP_LABELERS)
    ]
    write_jsonl(config.agreement_to, map(row_of, overlapping))
    return agreement(overlapping)


def _read_responses(path: str) -> list[tuple[Prompt, list[str]]]:
    """Prompts with their responses. UserError names the first row that labelers cannot rank."""
    prompts = []
    for prompt in read_prompts(path, strict=True)[0]:
        meta = dict(prompt.meta)
        responses = meta.pop("responses", None)
        if not isinstance(responses, list) or not all(isinstance(response, str) for response in responses):
            raise UserError(f"{prompt.origin}: no list of responses; write this file with `lora-rlhf sample`")
        # a sampled response may be empty or equal to another one, and neither can be ranked
        responses = list({response.strip(): response for response in responses if response.strip()}.values())
        if len(responses) < 2:
            raise UserError(f"{prompt.origin}: a ranking needs at least 2 different responses, got {len(responses)}")
        if find(prompt.messages[-1].content) is None:
            raise UserError(
                f"{prompt.origin}: {prompt.messages[-1].content!r} is not a prompt of the tiny world; its labelers can "
                "rank no other"
            )
        prompts.append((dataclasses.replace(prompt, meta=meta), responses))
    return prompts
