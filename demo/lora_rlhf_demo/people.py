"""What whoever runs a labelling wants to know: how much each person did, how fast, and how far they agree."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations
from statistics import median
from typing import NamedTuple

from lora_rlhf.data.labels import Agreement, ranking_agreement
from lora_rlhf.data.schema import Ranking

FASTEST_READING = 10.0  # words a second: 600 a minute; a ranking done faster was hardly read
FEWEST_FAST, FAST_SHARE = 3, 0.2  # of a person's rankings, before the page warns of them
MOST_DISAGREEMENTS = 20


class PersonFigures(NamedTuple):
    """One labeler: `rankings` in the file, `seconds` of the median one, `num_fast` done faster than one can read.

    agreement: with all others, over the pairs that both order strictly. last_saved: when, in seconds since 1970.
    """

    name: str
    rankings: int
    seconds: float | None
    num_fast: int
    agreement: Agreement
    last_saved: float

    @property
    def is_too_fast(self) -> bool:
        """Whether so many rankings were done too fast that somebody should ask."""
        return self.num_fast >= max(FEWEST_FAST, FAST_SHARE * self.rankings)


class PromptFigures(NamedTuple):
    """One prompt that several people ranked: their rankings, and how far they agree."""

    rankings: tuple[Ranking, ...]
    agreement: Agreement


class PeopleFigures(NamedTuple):
    """All labelers, the busiest first, and the prompts on which they agree least.

    prompts_by_people: {number of people: how many prompts so many ranked}.
    """

    people: tuple[PersonFigures, ...]
    disagreements: tuple[PromptFigures, ...]
    prompts_by_people: dict[int, int]


def people_figures(rankings: Iterable[Ranking]) -> PeopleFigures:
    """The figures of rankings whose prompts' `meta` is the row that was saved."""
    by_prompt: dict[str, dict[str, Ranking]] = defaultdict(dict)
    by_person: dict[str, list[Ranking]] = defaultdict(list)
    for ranking in rankings:
        by_prompt[ranking.prompt.key][ranking.labeler or ""] = ranking  # of two by one person, the later one counts
        by_person[ranking.labeler or ""].append(ranking)
    agreed: dict[str, list[Agreement]] = defaultdict(list)
    prompts = []
    for of_prompt in by_prompt.values():
        found = [
            (pair, ranking_agreement(of_prompt[name] for name in pair)) for pair in combinations(sorted(of_prompt), 2)
        ]
        for pair, agreement in found:
            for name in pair:
                agreed[name].append(agreement)
        prompts.append(PromptFigures(tuple(of_prompt.values()), _sum(agreement for _, agreement in found)))
    people = (_person(name, own, _sum(agreed[name])) for name, own in by_person.items())
    disputed = [prompt for prompt in prompts if prompt.agreement.rate is not None and prompt.agreement.rate < 1]
    disputed.sort(key=lambda prompt: prompt.agreement.rate or 0.0)
    counts: dict[int, int] = defaultdict(int)
    for prompt in prompts:
        counts[len(prompt.rankings)] += 1
    return PeopleFigures(
        tuple(sorted(people, key=lambda person: -person.rankings)),
        tuple(disputed[:MOST_DISAGREEMENTS]),
        dict(sorted(counts.items())),
    )


def _person(name: str, rankings: list[Ranking], agreement: Agreement) -> PersonFigures:
    times = [(seconds, ranking) for ranking in rankings if (seconds := _number(ranking, "seconds")) is not None]
    num_fast = sum(seconds * FASTEST_READING < _num_words(ranking) for seconds, ranking in times)
    last_saved = max((_number(ranking, "saved") or 0.0 for ranking in rankings), default=0.0)
    seconds = median(seconds for seconds, _ in times) if times else None
    return PersonFigures(name, len(rankings), seconds, num_fast, agreement, last_saved)


def _num_words(ranking: Ranking) -> int:
    """Words that a person had to read before ranking."""
    return len(ranking.prompt.messages[-1].text.split()) + sum(len(text.split()) for text in ranking.responses)


def _number(ranking: Ranking, name: str) -> float | None:
    """A number of the saved row; None where somebody has changed it."""
    value = ranking.prompt.meta.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _sum(agreements: Iterable[Agreement]) -> Agreement:
    """The agreement over all pairs of several."""
    found = list(agreements)
    num_pairs = sum(agreement.num_pairs for agreement in found)
    num_agreed = sum((agreement.rate or 0.0) * agreement.num_pairs for agreement in found)
    return Agreement(num_agreed / num_pairs if num_pairs else None, num_pairs)
