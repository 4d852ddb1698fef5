"""The hidden gold score: exactly how good a response is. Only labelers and evaluation may read it."""

from dataclasses import dataclass

from lora_rlhf.tinyworld.language import read
from lora_rlhf.tinyworld.requests import Request, find

# Fixed before anything was measured, never changed after a result: how much each quality counts once a response
# does what was asked.
BASE_WEIGHT = 0.30
WEIGHTS = {"true": 0.25, "constraint": 0.20, "point": 0.15, "civil": 0.10}


@dataclass(frozen=True)
class GoldScore:
    """The qualities of one response, each from 0 to 1, and their total.

    total = asked * (0.30 + 0.25 true + 0.20 constraint + 0.15 point + 0.10 civil): a response that does not do what was
    asked is worth nothing, however polite.
    """

    asked: float
    true: float
    constraint: float
    point: float
    civil: float

    @property
    def total(self) -> float:
        return self.asked * (BASE_WEIGHT + sum(weight * getattr(self, name) for name, weight in WEIGHTS.items()))


def score_request(request: Request, response: str) -> GoldScore:
    """Judges a response to a known request.

    asked: the share of what the task calls for. true: the share of its claims that hold in this world (or in the
    prompt's own passage); a response without claims is not untrue. constraint: the stated limit is kept (1 where none
    was stated). point: the share of sentences that serve the task, courtesies aside, repeats counting against it.
    civil: nothing rude.
    """
    sentences = read(response, request.skill.hero(request.key))
    verdict = request.skill.judge(request.key, sentences)
    counted = [index for index, sentence in enumerate(sentences) if sentence.kind != "courtesy"]
    fresh = [index for index in counted if sentences[index].text not in [s.text for s in sentences[:index]]]
    useful = [index for index in fresh if index in verdict.useful]
    return GoldScore(
        asked=verdict.asked,
        true=sum(verdict.claims) / len(verdict.claims) if verdict.claims else 1.0,
        constraint=float(request.constraint is None or request.constraint.obeyed_by(response)),
        point=len(useful) / len(counted) if counted else 0.0,
        civil=float(all(sentence.kind != "rude" for sentence in sentences)),
    )


def score(prompt: str, response: str) -> float:
    """The gold total of a response to a prompt, from 0 to 1.

    Raises:
        KeyError: the prompt is not one of the tiny world's.
    """
    request = find(prompt)
    if request is None:
        raise KeyError(f"not a prompt of the tiny world: {prompt!r}")
    return score_request(request, response).total
