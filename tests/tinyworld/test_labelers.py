"""Simulated labelers: taste, noise, ties, and how far they agree."""

import random
import statistics
from itertools import combinations

import pytest

from lora_rlhf.data.schema import Prompt, Ranking
from lora_rlhf.tinyworld.labelers import Labeler, make_labelers

PROMPT = Prompt.of("Where does the fox live? End with: Good day.")
# With their gold totals, worked out by hand from the weights in gold's own words.
RESPONSES = {
    "The fox lives in the meadow. Good day.": 1.0,
    "The fox lives in the meadow. That is how it goes. Good day.": 0.925,
    "The fox lives in the meadow. You should know that. Good day.": 0.825,
    "The fox lives in the meadow.": 0.8,
    "The fox lives in the barn. Good day.": 0.75,
    "The fox lives in the barn.": 0.55,
    "Barn.": 0.385,
    "The owl is big.": 0.0,
}
GOLD_WEIGHTS = {"true": 0.25, "constraint": 0.20, "point": 0.15, "civil": 0.10}


def shuffled(seed: int) -> list[str]:
    return random.Random(seed).sample(list(RESPONSES), len(RESPONSES))


@pytest.mark.parametrize("seed", range(5))
def test_a_noiseless_labeler_with_golds_weights_orders_as_gold_does(seed: int) -> None:
    judge = Labeler("judge", GOLD_WEIGHTS, utility_per_word=0.0, noise=0.0)
    responses = shuffled(seed)
    ranking = judge.rank(PROMPT, responses, random.Random(seed))
    assert ranking.responses == tuple(responses)
    assert ranking.labeler == "judge"
    assert dict(zip(responses, ranking.ranks, strict=True)) == {text: 1 + i for i, text in enumerate(RESPONSES)}
    for text, total in RESPONSES.items():
        assert judge.utility(PROMPT.messages[-1].content, text, random.Random(0)) == pytest.approx(total, abs=1e-12)


def test_what_is_hardly_different_is_tied() -> None:
    judge = Labeler("judge", GOLD_WEIGHTS, utility_per_word=0.0, noise=0.0)
    twins = ["It lives in the meadow. Good day.", "The fox lives in the meadow. Good day.", "Barn.", "The owl is big."]
    assert judge.rank(PROMPT, twins, random.Random(0)).ranks == (1, 1, 3, 4)
    assert judge.rank(PROMPT, twins[::-1], random.Random(0)).ranks == (4, 3, 1, 1)
    # 0.0199 apart through a liking for length alone: 2 words more
    fond = Labeler("fond", GOLD_WEIGHTS, utility_per_word=0.00995, noise=0.0)
    assert fond.rank(PROMPT, ["The owl is big.", "The owl is big and small."], random.Random(0)).ranks == (1, 1)
    fonder = Labeler("fonder", GOLD_WEIGHTS, utility_per_word=0.0101, noise=0.0)
    assert fonder.rank(PROMPT, ["The owl is big.", "The owl is big and small."], random.Random(0)).ranks == (2, 1)


def rate(noise: float) -> float:
    """Share of strictly ordered pairs that two different labelers order alike."""
    rng, people = random.Random(0), make_labelers(noise)
    alike = []
    for seed in range(60):
        first, second = (person.rank(PROMPT, shuffled(seed), rng) for person in rng.sample(people, 2))
        for a, b in combinations(range(len(RESPONSES)), 2):
            product = (first.ranks[a] - first.ranks[b]) * (second.ranks[a] - second.ranks[b])
            alike += [product > 0] if product else []
    return statistics.fmean(alike)


def test_more_noise_is_less_agreement() -> None:
    rates = [rate(noise) for noise in (0.0, 0.1, 0.3, 1.0, 100.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.9  # what is left is taste
    assert 0.46 < rates[-1] < 0.54  # 1680 coins: 0.5 within 3 sd


def test_rankings_are_valid_and_repeatable() -> None:
    people = make_labelers()
    first, repeated, other = (
        [person.rank(PROMPT, shuffled(1), rng) for person in people]
        for rng in (random.Random(7), random.Random(7), random.Random(8))
    )
    assert first == repeated
    assert [ranking.ranks for ranking in first] != [ranking.ranks for ranking in other]
    for ranking in first:
        assert_competition_ranks(ranking)


def assert_competition_ranks(ranking: Ranking) -> None:
    """1 = best; whoever is tied shares a rank, and as many ranks are left out after."""
    assert sorted(ranking.ranks) == sorted(1 + sum(r < rank for r in ranking.ranks) for rank in ranking.ranks)


def test_forty_people_with_tastes_of_their_own() -> None:
    people = make_labelers()
    assert people == make_labelers()
    assert people != make_labelers(seed=1)
    assert len({person.name for person in people}) == len({str(person.weights) for person in people}) == 40
    assert all(weight > 0 for person in people for weight in person.weights.values())
    assert len({person.noise for person in people}) == 40
    assert all(quiet.noise < loud.noise for quiet, loud in zip(people, make_labelers(noise=1.0), strict=True))


def test_a_foreign_prompt_can_not_be_ranked() -> None:
    with pytest.raises(KeyError, match="unicorn"):
        make_labelers()[0].rank(Prompt.of("Where is the unicorn?"), ["Here.", "There."], random.Random(0))
