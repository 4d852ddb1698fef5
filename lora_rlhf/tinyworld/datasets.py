"""The tiny world's data files: demonstrations and prompts drawn from it, and rankings by its simulated labelers."""

import dataclasses
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.labels import Agreement, agreement
from lora_rlhf.data.schema import Demonstration, Prompt, Text, row_of
from lora_rlhf.data.sources import read_prompts
from lora_rlhf.system.errors import UserError
from lora_rlhf.tinyworld.labelers import labelers
from lora_rlhf.tinyworld.requests import SKILLS, Request, constraints_of, draw, find
from lora_rlhf.tinyworld.scrape import Scrape
from lora_rlhf.tinyworld.writers import writers

OVERLAP_LABELERS = 5  # how many people rank each prompt of the agreement file
PROMPT_SETS = {
    False: ("demonstrations", "ranking_prompts", "ppo_prompts"),
    True: ("evaluation_prompts", "selection_prompts"),  # held out: what they ask of whom is in no other file
}


@dataclass(frozen=True, kw_only=True)
class TinyworldConfig:
    """Demonstrations, prompts and pretraining text of the tiny world; no prompt is in two files."""

    to: str
    """Folder to write to: demonstrations.jsonl, ranking_prompts.jsonl and so on."""
    seed: int = 0
    """Other seeds draw other prompts, entities and writers."""
    num_demonstrations: int = 1500
    """Prompts answered by the writers."""
    num_ranking_prompts: int = 1200
    """Prompts whose sampled responses are to be ranked."""
    num_ppo_prompts: int = 3000
    """Prompts for PPO."""
    num_evaluation_prompts: int = 320
    """Prompts to compare the stages on; what they ask of whom is in no other file."""
    num_selection_prompts: int = 200
    """Prompts to choose each stage's best temperature on; held out like those for evaluation."""
    num_pretraining: int = 2000
    """Documents of the scrape that the base was pretrained on, for PPO-ptx."""

    @property
    def sets(self) -> dict[str, int]:
        """Name of each set -> how many rows it has."""
        return {name.removeprefix("num_"): count for name, count in vars(self).items() if name.startswith("num_")}

    @property
    def files(self) -> dict[str, Path]:
        """Name of each set -> the file that it is written to."""
        return {name: Path(self.to) / f"{name}.jsonl" for name in self.sets}

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        faults = [] if self.to else ["to is empty; name a folder"]
        faults += [f"num_{name} is {count}, must be at least 1" for name, count in self.sets.items() if count < 1]
        for held_out, names in PROMPT_SETS.items():
            # beyond half of all prompts the rare use cases are used up and the mixture is another
            total, most = sum(self.sets[name] for name in names), num_prompts(held_out) // 2
            if total > most:
                asked = " + ".join(f"num_{name}" for name in names)
                faults.append(f"{asked} is {total}, must be at most {most}: the tiny world has no more prompts")
        return faults


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Simulated labelers rank sampled responses: one of forty per prompt, each with a taste and noise of their own."""

    candidates: str
    """File that `lora-rlhf sample` wrote: rows with prompt and responses."""
    to: str
    """JSONL file of rankings to write."""
    agreement_to: str | None = None
    """Second file to write: rankings of the same responses by several labelers, to measure how far they agree."""
    overlap: int = 100
    """How many prompts go into the agreement file."""
    seed: int = 0
    """Which labeler gets which prompt, and their noise."""
    shuffle_labels: bool = False
    """Deal the ranks of each ranking out at random: a control, on which a reward model must stay at chance."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        return [
            *(f"{name} is empty; name a file" for name in ("candidates", "to") if not getattr(self, name)),
            *([f"overlap is {self.overlap}, must be at least 1"] if self.overlap < 1 else []),
        ]


@cache
def num_prompts(held_out: bool) -> int:
    """How many distinct prompts there are on that side of the split."""
    return sum(
        len(skill.phrase(key)) * (1 + len(constraints_of(skill)))
        for skill in SKILLS
        for key in skill.keys
        if Request(skill, key, "").held_out == held_out
    )


def make(config: TinyworldConfig) -> dict[str, int]:
    """Writes every data file; the same configuration writes the same bytes. Returns the rows of each file."""
    Path(config.to).mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    written = {}
    for name, path in config.files.items():
        rows = _rows(name, f"{name}-{config.seed}", seen)
        written[name] = write_jsonl(path, itertools.islice(rows, config.sets[name]))
    return written


def _rows(name: str, seed: str, seen: set[str]) -> Iterator[dict[str, Any]]:
    """Endless rows of one set."""
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
    """Writes the rankings, and the agreement file where one is asked for; returns the agreement measured on it."""
    candidates = _read_candidates(config.candidates)
    for path in (config.to, config.agreement_to):
        Path(path or config.to).parent.mkdir(parents=True, exist_ok=True)
    people = labelers()
    rng = random.Random(f"label-{config.seed}")
    rankings = []
    for prompt, responses in candidates:
        ranking = rng.choice(people).rank(prompt, responses, rng)
        if config.shuffle_labels:
            ranking = dataclasses.replace(ranking, ranks=tuple(rng.sample(ranking.ranks, len(ranking.ranks))))
        rankings.append(ranking)
    write_jsonl(config.to, map(row_of, rankings))
    if config.agreement_to is None:
        return None
    rng = random.Random(f"agreement-{config.seed}")
    repeated = [
        labeler.rank(prompt, responses, rng)
        for prompt, responses in candidates[: config.overlap]
        for labeler in rng.sample(people, OVERLAP_LABELERS)
    ]
    write_jsonl(config.agreement_to, map(row_of, repeated))
    return agreement(repeated)


def _read_candidates(path: str) -> list[tuple[Prompt, list[str]]]:
    """Prompts with their responses. UserError names the first row that labelers can not rank."""
    candidates = []
    for prompt in read_prompts(path, strict=True)[0]:
        meta = dict(prompt.meta)
        responses = meta.pop("responses", None)
        if not isinstance(responses, list) or not all(isinstance(response, str) for response in responses):
            raise UserError(f"{prompt.origin}: no list of responses; write this file with `lora-rlhf sample`")
        # a sampled response may be empty; that one, and the same one twice, cannot be ranked
        responses = list({response.strip(): response for response in responses if response.strip()}.values())
        if len(responses) < 2:
            raise UserError(f"{prompt.origin}: a ranking needs at least 2 different responses, got {len(responses)}")
        if find(prompt.messages[-1].content) is None:
            raise UserError(
                f"{prompt.origin}: {prompt.messages[-1].content!r} is not a prompt of the tiny world; its labelers can "
                "rank no other"
            )
        candidates.append((dataclasses.replace(prompt, meta=meta), responses))
    return candidates
