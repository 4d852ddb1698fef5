"""The hidden gold score: the exact quality of a response. Only labelers and evaluation may read it."""

from dataclasses import dataclass

from lora_rlhf.tinyworld.language import parse_sentences
from lora_rlhf.tinyworld.requests import Request, find_request

# The weight of each quality in a response that does its task. Fixed before anything was measured, and never changed
# after a result.
BASE_WEIGHT = 0.30
WEIGHTS = {"true": 0.25, "constraint": 0.20, "point": 0.15, "civil": 0.10}


@dataclass(frozen=True)
class GoldScore:
    """The qualities of one response, each from 0 to 1, and their total.

    total = asked * (0.30 + 0.25 true + 0.20 constraint + 0.15 point + 0.10 civil): a response that does not do its task
    is worth nothing, however polite.
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
    """Scores a response to a request.

    asked: the share of the task that is done. true: the share of its claims that hold in this world (or in the prompt's
    own passage), 1 without claims. constraint: 1 if it keeps the stated limit or has none, else 0. point: the share of
    sentences that serve the task, without courtesies; repeated sentences do not serve it. civil: 1 if nothing is rude.
    """
    sentences = parse_sentences(response, request.skill.hero(request.key))
    verdict = request.skill.assess(request.key, sentences)
    task_indices = [index for index, sentence in enumerate(sentences) if sentence.kind != "courtesy"]
    new_indices = [index for index in task_indices if sentences[index].text not in [s.text for s in sentences[:index]]]
    useful_indices = [index for index in new_indices if index in verdict.useful]
    return GoldScore(
        asked=verdict.asked,
        true=sum(verdict.claims) / len(verdict.claims) if verdict.claims else 1.0,
        constraint=float(request.constraint is None or request.constraint.is_obeyed_by(response)),
        point=len(useful_indices) / len(task_indices) if task_indices else 0.0,
        civil=float(all(sentence.kind != "rude" for sentence in sentences)),
    )


def gold_total(prompt: str, response: str) -> float:
    """The gold total of a response to a prompt, from 0 to 1.

    Raises:
        KeyError: the prompt is not one of the tiny world's.
    """
    request = find_request(prompt)
    if request is None:
        raise KeyError(f"not a prompt of the tiny world: {prompt!r}")
    return score_request(request, response).total
