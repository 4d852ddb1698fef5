"""Which judge is chosen, and what it says of a response."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from evaluation_helpers import OFFSET, QUESTIONS, letter_share

from lora_rlhf.config import EvaluateConfig
from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.errors import UserError
from lora_rlhf.evaluate.generation import Answer
from lora_rlhf.evaluate.judges import Judge, choose_judge, make_judge
from lora_rlhf.evaluate.lineage import find_stages
from lora_rlhf.model.shared import SharedModel

PROMPTS = [Prompt.of(text) for text in QUESTIONS[:3]]


def knows_two(prompt: str, response: str) -> float:
    return {QUESTIONS[0]: 1.0, QUESTIONS[1]: 2.0}[prompt]


def test_choice(make_run: Callable[..., Path], settings: Callable[..., EvaluateConfig]) -> None:
    run = make_run()
    stages, config = find_stages(str(run)), settings(run)
    assert choose_judge(config, stages, letter_share, PROMPTS) == "gold"
    assert choose_judge(config, stages, None, PROMPTS) == "reward_score"
    assert choose_judge(config, stages, knows_two, PROMPTS) == "reward_score", "a prompt is not one of its world's"
    assert choose_judge(config, stages, knows_two, PROMPTS[:2]) == "gold"
    assert choose_judge(settings(run, judge="reward"), stages, letter_share, PROMPTS) == "reward_score"
    with pytest.raises(UserError, match=f"does not know the prompt '{QUESTIONS[2][:20]}.*--judge reward"):
        choose_judge(settings(run, judge="gold"), stages, knows_two, PROMPTS)
    with pytest.raises(UserError, match="--judge gold: there is none here"):
        choose_judge(settings(run, judge="gold"), stages, None, PROMPTS)


def test_without_a_reward_stage_only_gold_can_judge(
    make_run: Callable[..., Path], settings: Callable[..., EvaluateConfig]
) -> None:
    run = make_run(reward=False)
    stages = find_stages(str(run))
    assert choose_judge(settings(run), stages, letter_share, PROMPTS) == "gold"
    for judge in ("auto", "reward"):
        with pytest.raises(UserError, match="no reward stage there"):
            choose_judge(settings(run, judge=judge), stages, None, PROMPTS)


def test_gold_sees_the_last_question_and_the_answer(
    make_run: Callable[..., Path], settings: Callable[..., EvaluateConfig], trained: SharedModel
) -> None:
    run, seen = make_run(), []

    def gold(prompt: str, response: str) -> int:
        seen.append((prompt, response))
        return len(response)

    judge = make_judge("gold", settings(run), find_stages(str(run)), gold, trained)
    talk = Prompt((Message("user", "Hello?"), Message("assistant", "Hello."), Message("user", "And now?")))
    assert judge([EncodedPrompt([1], talk)], [Answer([5, 0], "yes", True)]) == [3.0]
    assert seen == [("And now?", "yes")]


def test_the_reward_judge_gives_the_head_less_the_offset(
    make_run: Callable[..., Path], settings: Callable[..., EvaluateConfig], trained: SharedModel
) -> None:
    run = make_run()
    judge = make_judge("reward_score", settings(run, micro_batch_size=2), find_stages(str(run)), None, trained)
    prompts = encode_prompts(trained.tokenizer, PROMPTS, 100)[0]
    answers = [Answer([40, 50, 60, 0], "", True), Answer([70], "", False), Answer([80, 0], "", True)]
    expected = []
    head = trained.adapter_state("reward")
    weight = next(tensor for name, tensor in head.items() if name.endswith("score.weight"))
    for prompt, answer in zip(prompts, answers, strict=True):
        with trained.role("reward"), torch.no_grad():
            hidden = trained.backbone(torch.tensor([prompt.prompt_ids + answer.ids]), use_cache=False)[0][0, -1]
        expected.append((hidden @ weight[0]).item() - OFFSET)
    assert json.loads((run / "reward/manifest.json").read_text())["results"]["offset"] == 0.7
    assert judge(prompts, answers) == pytest.approx(expected, abs=1e-4)


def test_a_response_keeps_its_score() -> None:
    """Whatever a scorer says the second time: a tie must stay a tie."""
    calls = []

    def scorer(prompts: list[EncodedPrompt], answers: list[Answer]) -> list[float]:
        calls.append(len(answers))
        return [len(calls) + len(answer.ids) / 10 for answer in answers]

    judge = Judge("reward_score", scorer)
    prompts = [EncodedPrompt([1], prompt) for prompt in PROMPTS]
    one, other = Answer([5, 0], "x", True), Answer([6, 7, 0], "y", True)
    assert judge(prompts, [one, one, one]) == [1.2, 1.2, 1.2]
    assert judge(prompts, [one, other, one]) == [1.2, 2.3, 1.2]
    assert judge(prompts, [one, other, one]) == [1.2, 2.3, 1.2]
    assert calls == [3, 1]


def test_a_score_that_is_no_number_is_an_error() -> None:
    judge = Judge("gold", lambda prompts, answers: [float("nan")] * len(answers))
    with pytest.raises(ValueError, match="gold of 'x' is nan"):
        judge([EncodedPrompt([1], PROMPTS[0])], [Answer([5], "x", False)])
