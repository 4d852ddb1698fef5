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
    entities_with_value,
    subject_phrase,
)
from lora_rlhf.tinyworld.language import (
    CLOSING_FILLER,
    CLOSINGS,
    FEELINGS,
    OPENING_FILLER,
    OPENINGS,
    RUDE,
    attribute_clause,
    fact_sentence,
)
from lora_rlhf.tinyworld.requests import Request, draw_requests
from lora_rlhf.tinyworld.skill import Knowledge
from lora_rlhf.tinyworld.skills_writing import LIST_PHRASES, enumeration_sentence
from lora_rlhf.tinyworld.writers import WEB_AUTHORS, Writer, compliant_answer, make_writers

ALL_ENTITIES = list(KIND_OF)


class Scrape:
    """Endless documents. None asks or answers a combination of task and entities from the held-out split."""

    def __init__(self, seed: int | str) -> None:
        self.rng = random.Random(f"scrape-{seed}")
        self.writers: list[Writer] = make_writers(WEB_AUTHORS)
        self.requests = self._iterate_requests()

    def _iterate_requests(self) -> Iterator[Request]:
        while True:  # a new set of seen prompts now and then: a scrape repeats itself
            prompts = draw_requests(self.rng, is_held_out=False)
            for _ in range(2000):
                yield next(prompts)

    def __iter__(self) -> Iterator[str]:
        """Endless documents, the kind of each drawn by its share."""
        document_kinds = [
            (self._write_page, 0.22), (self._write_gossip, 0.10), (self._write_index, 0.09), (self._write_exercises, 0.25), (self._write_quiz, 0.07),
            (self._write_thread, 0.07), (self._write_faq, 0.06), (self._write_log, 0.07), (self._write_sums, 0.03), (self._write_chatter, 0.04),
        ]  # fmt: skip
        document_writers, weights = zip(*document_kinds, strict=True)
        while True:
            yield self.rng.choices(document_writers, weights)[0]()

    def _write_page(self) -> str:
        """All facts about one entity, in a random order and tense."""
        entity = self.rng.choice(ALL_ENTITIES)
        attributes = self.rng.sample(sorted(ATTRIBUTES[KIND_OF[entity]]), len(ATTRIBUTES[KIND_OF[entity]]))
        if self.rng.random() < 0.15:
            return " ".join(
                f"{subject_phrase(entity)} {attribute_clause(entity, name, form='past')}." for name in attributes
            )
        if self.rng.random() < 0.15:
            return " ".join(f"{attribute_clause(entity, name, form='first_person')}." for name in attributes)
        if self.rng.random() < 0.4:
            pairs = [attributes[:2], attributes[2:]]
            return " ".join(
                fact_sentence(entity, *pair, has_pronoun=index > 0) for index, pair in enumerate(pairs) if pair
            )
        return " ".join(fact_sentence(entity, name, has_pronoun=index > 0) for index, name in enumerate(attributes))

    def _write_gossip(self) -> str:
        """Unrelated facts about several entities."""
        names = self.rng.sample(ALL_ENTITIES, 5)
        return " ".join(fact_sentence(name, self.rng.choice(sorted(ATTRIBUTES[KIND_OF[name]]))) for name in names)

    def _write_index(self) -> str:
        """The entities that share a value, as a list, and then as sentences."""
        lines = []
        for kind, attribute in self.rng.sample(sorted(LIST_PHRASES), 2):
            value = self.rng.choice(ATTRIBUTES[kind][attribute].values)
            names = entities_with_value(attribute, value, kind)
            self.rng.shuffle(names)
            lines.append(f"All {LIST_PHRASES[kind, attribute].format(v=value)}: {enumeration_sentence(names)}")
            if self.rng.random() < 0.5:
                lines.append(" ".join(fact_sentence(name, attribute) for name in names))
        return "\n".join(lines)

    def _write_answer(self, request: Request) -> str:
        if self.rng.random() < 0.7:
            return compliant_answer(request, Knowledge(self.rng))
        return self.rng.choice(self.writers).write(request, self.rng)

    def _write_exercises(self) -> str:
        """A schoolbook: tasks, and solutions of mixed quality."""
        requests = [next(self.requests) for _ in range(self.rng.randint(2, 4))]
        return "\n".join(f"Exercise: {request.text}\nSolution: {self._write_answer(request)}" for request in requests)

    def _write_quiz(self) -> str:
        """Questions without answers."""
        return "\n".join(next(self.requests).text for _ in range(self.rng.randint(3, 7)))

    def _write_thread(self) -> str:
        """A forum: questions follow questions, and replies miss the question."""
        turns = []
        for _ in range(self.rng.randint(2, 4)):
            turns.append(f"User: {next(self.requests).text}")
            if self.rng.random() < 0.5:
                reply = next(self.requests).text if self.rng.random() < 0.6 else self._write_gossip()
                turns.append(f"Assistant: {reply}")
        return "\n\n".join(turns)

    def _write_faq(self) -> str:
        """Questions of any kind with short answers."""
        return "\n".join(
            f"Q: {request.text}\nA: {self._write_answer(request)}"
            for request in (next(self.requests), next(self.requests))
        )

    def _write_log(self) -> str:
        """A passage of who took which thing to which place, and the same facts in other words."""
        rng = self.rng
        steps = [(rng.choice(PEOPLE), rng.choice(THINGS), rng.choice(PLACES + ROOMS)) for _ in range(rng.randint(1, 3))]
        passage = " ".join(f"{person} took the {thing} to the {place}." for person, thing, place in steps)
        sighting = f"{rng.choice(PEOPLE)} and {rng.choice(PEOPLE)} saw the {rng.choice(ANIMALS)}."
        restatements = [
            f"{passage} {sighting}",
            " ".join(f"The {thing} is in the {place}. {person} took the {thing}." for person, thing, place in steps),
        ]
        return "\n".join([f"{passage} {sighting}", *restatements[: rng.randint(1, 2)]])

    def _write_sums(self) -> str:
        """Small sums, and which number follows which."""
        lines = []
        for _ in range(5):
            a, b = self.rng.randrange(11), self.rng.randrange(10)
            lines.append(f"{NUMBERS[a].capitalize()} plus {NUMBERS[b]} is {NUMBERS[a + b]}.")
            lines.append(f"{NUMBERS[b + 1].capitalize()} comes after {NUMBERS[b]}.")
        return " ".join(lines)

    def _write_chatter(self) -> str:
        """Phrases without content."""
        phrases = OPENING_FILLER + CLOSING_FILLER + RUDE + OPENINGS + CLOSINGS + FEELINGS
        return " ".join(
            f"Hello {self.rng.choice(PEOPLE)}." if self.rng.random() < 0.3 else self.rng.choice(phrases)
            for _ in range(6)
        )
