"""What a round records of its reward models."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from lora_rlhf.cli.rounds_record import reward_accuracy
from lora_rlhf.data.schema import Prompt, Ranking


class LikesLength:
    """A run whose reward model scores a response by its length."""

    def score(self, messages: object, responses: Sequence[str]) -> list[float]:
        return [float(len(response)) for response in responses]


def rank(*responses: str, ranks: tuple[int, ...]) -> Ranking:
    return Ranking(Prompt.of("Name a colour."), responses, ranks)


def test_accuracy_is_the_share_of_pairs_in_the_labelers_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_rlhf.chat.loaded_run.load_run", lambda *_, **__: nullcontext(LikesLength()))
    all_right = rank("red", "dark red", "very dark red", ranks=(3, 2, 1))
    one_of_three = rank("a", "bb", "ccc", ranks=(1, 3, 2))  # the best is the shortest
    equal_scores = rank("red", "tan", ranks=(1, 2))
    nobody_ranks = rank("red", "dark red", ranks=(1, 1))
    rankings = [all_right, one_of_three, equal_scores]
    accuracy = reward_accuracy(Path("run"), [*rankings, nobody_ranks], "cpu")
    assert accuracy is not None
    assert accuracy["mean"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3), "each prompt counts once, and ties do not"
    for few in ([all_right], [all_right, equal_scores]):
        accuracy = reward_accuracy(Path("run"), few, "cpu")
        assert accuracy is not None and (accuracy["low"], accuracy["high"]) == (0.0, 1.0), "all that a share can be"
    assert reward_accuracy(Path("run"), [nobody_ranks], "cpu") is None
