"""Forty simulated labelers: each ranks responses by the gold qualities with weights and noise of its own."""

import random
from dataclasses import dataclass

from lora_rlhf.data.schema import Prompt, Ranking
from lora_rlhf.tinyworld.gold import BASE_WEIGHT, WEIGHTS, score_request
from lora_rlhf.tinyworld.language import count_words
from lora_rlhf.tinyworld.requests import find_request

NUM_LABELERS = 40
# Set once, so that two labelers agree on 73 % of pairs of sampled responses, as InstructGPT's training labelers did
# (72.6 +- 1.5 %, section 3.4).
NOISE = 0.15
TIE_WIDTH = 0.02


@dataclass(frozen=True)
class Labeler:
    """One person's taste: the weight of each quality, a preference for length (utility per word), and noise (sd)."""

    name: str
    weights: dict[str, float]
    utility_per_word: float
    noise: float

    def utility(self, prompt: str, response: str, rng: random.Random) -> float:
        """The labeler's utility of a response, with fresh noise.

        Raises:
            KeyError: the prompt is not one of the tiny world's.
        """
        request = find_request(prompt)
        if request is None:
            raise KeyError(f"not a prompt of the tiny world: {prompt!r}")
        gold = score_request(request, response)
        utility = gold.asked * (
            BASE_WEIGHT + sum(weight * getattr(gold, name) for name, weight in self.weights.items())
        )
        return utility + self.utility_per_word * count_words(response) + rng.gauss(0.0, self.noise)

    def rank(self, prompt: Prompt, responses: list[str], rng: random.Random, ended: tuple[bool, ...] = ()) -> Ranking:
        """Ranks the responses, 1 = best; neighbours that differ by at most TIE_WIDTH are tied. ended: of `Ranking`."""
        utilities = [self.utility(prompt.messages[-1].content, response, rng) for response in responses]
        order = sorted(range(len(responses)), key=lambda index: -utilities[index])
        ranks, rank = [0] * len(responses), 0
        for position, index in enumerate(order):
            if position == 0 or utilities[order[position - 1]] - utilities[index] > TIE_WIDTH:
                rank = position + 1
            ranks[index] = rank
        return Ranking(prompt, tuple(responses), tuple(ranks), self.name, ended)


def make_labelers(noise: float = NOISE, seed: int = 0) -> list[Labeler]:
    """The labelers: the same group of people for every run with the same seed."""
    rng = random.Random(f"labelers-{seed}")
    return [
        Labeler(
            name=f"labeler-{number:02d}",
            weights={name: weight * rng.lognormvariate(0.0, 0.3) for name, weight in WEIGHTS.items()},
            utility_per_word=rng.gauss(0.001, 0.002),
            noise=noise * rng.lognormvariate(0.0, 0.3),
        )
        for number in range(NUM_LABELERS)
    ]
