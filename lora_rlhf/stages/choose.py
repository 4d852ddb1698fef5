"""Which sampled prompts are worth a label: flagged by users, uncertain for the reward model, unlike one another."""

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

from lora_rlhf.data.messages import VERDICTS
from lora_rlhf.data.names import column_meaning
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.verdicts import find_verdict

ALIKE = 0.8  # of two prompts' words together, the share that both have


class Candidate(NamedTuple):
    """A prompt with its sampled responses. scores: the reward model's, one for each response; empty without one."""

    prompt: Prompt
    responses: Sequence[str]
    scores: Sequence[float]

    @property
    def margin(self) -> float:
        """The mean difference between two responses' scores: the smaller, the less the reward model knows."""
        gaps = [abs(a - b) for a, b in combinations(self.scores, 2)]
        return sum(gaps) / len(gaps) if gaps else 0.0


def is_flagged(meta: dict[str, Any]) -> bool:
    """Whether a user found an earlier answer to the prompt bad: a thumb down, or another verdict in a column."""
    for name, value in meta.items():
        meaning = column_meaning(name)
        try:
            if meaning in VERDICTS and meaning is not None and find_verdict(name, meaning, value) is False:
                return True
        except BadRow:  # no verdict
            continue
    return False


def choose(candidates: Sequence[Candidate], count: int, random_share: float, seed: int) -> dict[int, str]:
    """{index: why it is chosen} of at most `count` candidates.

    A share is drawn at random: only these say how good a reward model is on all prompts. Of the others, flagged ones
    come first, then those with the smallest margin; a prompt much like one that is chosen waits until no other is left.
    """
    order = list(range(len(candidates)))
    random.Random(f"choose-{seed}").shuffle(order)
    count = min(count, len(order))
    num_random = round(count * random_share)
    chosen = dict.fromkeys(order[:num_random], "random")
    flagged = {index for index in order if is_flagged(candidates[index].prompt.meta)}
    rest = sorted(order[num_random:], key=lambda index: (index not in flagged, candidates[index].margin))
    words = [set(candidate.prompt.messages[-1].content.casefold().split()) for candidate in candidates]
    for accepts_alike in (False, True):
        for index in rest:
            if len(chosen) >= count:
                break
            if index in chosen or (not accepts_alike and any(_are_alike(words[index], words[o]) for o in chosen)):
                continue
            chosen[index] = "flagged" if index in flagged else "uncertain" if candidates[index].scores else "other"
    return dict(sorted(chosen.items()))


def _are_alike(first: set[str], second: set[str]) -> bool:
    return len(first & second) >= ALIKE * len(first | second)
