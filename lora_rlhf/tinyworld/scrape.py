"""Pretraining text like a web scrape: pages, stories, quizzes, threads. Questions often follow questions."""

import random
from collections.abc import Iterator

from lora_rlhf.tinyworld.facts import (
    ANIMALS,
    ATTRIBUTES,
    KIND_OF,
    NUMBERS,
    PEOPLE,
    PLACES,
    ROOMS,
    THINGS,
    holders,
    subject,
)
from lora_rlhf.tinyworld.language import CLOSING_FILLER, CLOSINGS, FEELINGS, OPENING_FILLER, OPENINGS, RUDE, fact, say
from lora_rlhf.tinyworld.requests import Request, draw
from lora_rlhf.tinyworld.skill import Knowledge
from lora_rlhf.tinyworld.skills_writing import LIST_PHRASES, enumerate_names
from lora_rlhf.tinyworld.writers import WEB_AUTHORS, Writer, compliant, writers

EVERYONE = list(KIND_OF)


class Scrape:
    """Endless documents. None asks or answers a combination of task and entities from the held-out split."""

    def __init__(self, seed: int | str) -> None:
        self.rng = random.Random(f"scrape-{seed}")
        self.writers: list[Writer] = writers(WEB_AUTHORS)
        self.requests = self._endless_requests()

    def _endless_requests(self) -> Iterator[Request]:
        while True:  # a new set of seen prompts now and then: a scrape repeats itself
            prompts = draw(self.rng, held_out=False)
            for _ in range(2000):
                yield next(prompts)

    def __iter__(self) -> Iterator[str]:
        kinds = [
            (self._page, 0.22), (self._gossip, 0.10), (self._index, 0.09), (self._exercises, 0.25), (self._quiz, 0.07),
            (self._thread, 0.07), (self._faq, 0.06), (self._log, 0.07), (self._sums, 0.03), (self._chatter, 0.04),
        ]  # fmt: skip
        makers, weights = zip(*kinds, strict=True)
        while True:
            yield self.rng.choices(makers, weights)[0]()

    def _page(self) -> str:
        """All facts about one entity, in some order and tense."""
        entity = self.rng.choice(EVERYONE)
        attributes = self.rng.sample(sorted(ATTRIBUTES[KIND_OF[entity]]), len(ATTRIBUTES[KIND_OF[entity]]))
        if self.rng.random() < 0.15:
            return " ".join(f"{subject(entity)} {say(entity, name, form='past')}." for name in attributes)
        if self.rng.random() < 0.15:
            return " ".join(f"{say(entity, name, form='first_person')}." for name in attributes)
        if self.rng.random() < 0.4:
            pairs = [attributes[:2], attributes[2:]]
            return " ".join(fact(entity, *pair, pronoun=index > 0) for index, pair in enumerate(pairs) if pair)
        return " ".join(fact(entity, name, pronoun=index > 0) for index, name in enumerate(attributes))

    def _gossip(self) -> str:
        """Unrelated facts about several entities."""
        names = self.rng.sample(EVERYONE, 5)
        return " ".join(fact(name, self.rng.choice(sorted(ATTRIBUTES[KIND_OF[name]]))) for name in names)

    def _index(self) -> str:
        """The entities that share a value, as a list, and then as sentences."""
        lines = []
        for kind, attribute in self.rng.sample(sorted(LIST_PHRASES), 2):
            value = self.rng.choice(ATTRIBUTES[kind][attribute].values)
            names = holders(attribute, value, kind)
            self.rng.shuffle(names)
            lines.append(f"All {LIST_PHRASES[kind, attribute].format(v=value)}: {enumerate_names(names)}")
            if self.rng.random() < 0.5:
                lines.append(" ".join(fact(name, attribute) for name in names))
        return "\n".join(lines)

    def _answer(self, request: Request) -> str:
        if self.rng.random() < 0.7:
            return compliant(request, Knowledge(self.rng))
        return self.rng.choice(self.writers).write(request, self.rng)

    def _exercises(self) -> str:
        """A schoolbook: tasks, and solutions of mixed quality."""
        requests = [next(self.requests) for _ in range(self.rng.randint(2, 4))]
        return "\n".join(f"Exercise: {request.text}\nSolution: {self._answer(request)}" for request in requests)

    def _quiz(self) -> str:
        """Questions without answers."""
        return "\n".join(next(self.requests).text for _ in range(self.rng.randint(3, 7)))

    def _thread(self) -> str:
        """A forum: questions follow questions, and replies miss the question."""
        turns = []
        for _ in range(self.rng.randint(2, 4)):
            turns.append(f"User: {next(self.requests).text}")
            if self.rng.random() < 0.5:
                reply = next(self.requests).text if self.rng.random() < 0.6 else self._gossip()
                turns.append(f"Assistant: {reply}")
        return "\n\n".join(turns)

    def _faq(self) -> str:
        """Questions of any kind with short answers."""
        return "\n".join(
            f"Q: {request.text}\nA: {self._answer(request)}" for request in (next(self.requests), next(self.requests))
        )

    def _log(self) -> str:
        """A passage of who took what where, and what it says in other words: teaches reading from a passage."""
        rng = self.rng
        steps = [(rng.choice(PEOPLE), rng.choice(THINGS), rng.choice(PLACES + ROOMS)) for _ in range(rng.randint(1, 3))]
        passage = " ".join(f"{who} took the {what} to the {where}." for who, what, where in steps)
        sighting = f"{rng.choice(PEOPLE)} and {rng.choice(PEOPLE)} saw the {rng.choice(ANIMALS)}."
        restatements = [
            f"{passage} {sighting}",
            " ".join(f"The {what} is in the {where}. {who} took the {what}." for who, what, where in steps),
        ]
        return "\n".join([f"{passage} {sighting}", *restatements[: rng.randint(1, 2)]])

    def _sums(self) -> str:
        lines = []
        for _ in range(5):
            a, b = self.rng.randrange(11), self.rng.randrange(10)
            lines.append(f"{NUMBERS[a].capitalize()} plus {NUMBERS[b]} is {NUMBERS[a + b]}.")
            lines.append(f"{NUMBERS[b + 1].capitalize()} comes after {NUMBERS[b]}.")
        return " ".join(lines)

    def _chatter(self) -> str:
        """Talk that says little."""
        phrases = OPENING_FILLER + CLOSING_FILLER + RUDE + OPENINGS + CLOSINGS + FEELINGS
        return " ".join(
            f"Hello {self.rng.choice(PEOPLE)}." if self.rng.random() < 0.3 else self.rng.choice(phrases)
            for _ in range(6)
        )
