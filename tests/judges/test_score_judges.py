"""The choice of a judge, and the scores of responses."""

import math
from pathlib import Path

import pytest
import torch

from lora_rlhf.configs.judge import JudgeConfig
from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.judges.choose import choose_judge
from lora_rlhf.judges.scores import ScoreJudge, compare_scores, gold_judge, reward_judge
from lora_rlhf.model.drawing import Response
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import Parent
from lora_rlhf.system.errors import UserError
from tests.support.judges import QUESTIONS, answer, asked

PROMPTS = [Prompt.of(text) for text in QUESTIONS]
REWARD = Parent(Path("runs/x/reward"), {"id": "abc"})


def letter_share(_prompt: str, response: str) -> float:
    return response.count("a") / len(response) if response else 0.0


def knows_two(prompt: str, response: str) -> float:
    return {QUESTIONS[0]: 1.0, QUESTIONS[1]: 2.0}[prompt]


def test_gold_judges_where_it_knows_every_prompt_and_the_reward_model_elsewhere() -> None:
    config = JudgeConfig()
    assert choose_judge(config, "runs/x", REWARD, letter_share, PROMPTS) == "gold"
    assert choose_judge(config, "runs/x", REWARD, None, PROMPTS) == "reward"
    assert choose_judge(config, "runs/x", REWARD, knows_two, PROMPTS) == "reward", "a prompt is not one of its world's"
    assert choose_judge(config, "runs/x", REWARD, knows_two, PROMPTS[:2]) == "gold"
    assert choose_judge(JudgeConfig(judge="reward"), "runs/x", REWARD, letter_share, PROMPTS) == "reward"
    assert choose_judge(JudgeConfig(judge="human", judge_file="h"), "runs/x", None, None, PROMPTS) == "human"
    with pytest.raises(UserError, match=f"does not know the prompt '{QUESTIONS[2][:20]}.*--judge reward"):
        choose_judge(JudgeConfig(judge="gold"), "runs/x", REWARD, knows_two, PROMPTS)
    with pytest.raises(UserError, match="--judge gold: there is none here"):
        choose_judge(JudgeConfig(judge="gold"), "runs/x", REWARD, None, PROMPTS)


def test_without_a_reward_stage_only_gold_can_judge() -> None:
    assert choose_judge(JudgeConfig(), "runs/x", None, letter_share, PROMPTS) == "gold"
    for config in (JudgeConfig(), JudgeConfig(judge="reward")):
        with pytest.raises(UserError, match="runs/x: no reward stage there"):
            choose_judge(config, "runs/x", None, None, PROMPTS)


def test_gold_sees_the_last_question_and_the_answer() -> None:
    seen = []

    def gold(prompt: str, response: str) -> int:
        seen.append((prompt, response))
        return len(response)

    talk = Prompt((Message("user", "Hello?"), Message("assistant", "Hello."), Message("user", "And now?")))
    assert gold_judge(gold).scores([EncodedPrompt([1], talk)], [answer("yes")]) == [3.0]
    assert seen == [("And now?", "yes")]


def test_the_reward_judge_gives_the_head_less_the_offset(shared_model) -> None:
    model: SharedModel = shared_model("llama", "none")
    model.set_score_offset("reward", 0.7)
    judge = reward_judge(model, 2, "abc")
    prompts = encode_prompts(model.tokenizer, PROMPTS[:3], 100)[0]
    answers = [
        Response([40, 50, 60, 0], True),
        Response([70], False),
        Response([80, 0], True),
    ]
    head = model.adapter_state("reward")
    weight = next(tensor for name, tensor in head.items() if name.endswith("score.weight"))
    expected = []
    for prompt, response in zip(prompts, answers, strict=True):
        with model.role("reward"), torch.no_grad():
            hidden = model.backbone(torch.tensor([prompt.prompt_ids + response.ids]), use_cache=False)[0][0, -1]
        expected.append((hidden @ weight[0]).item() - 0.7)
    assert judge.scores(prompts, answers) == pytest.approx(expected, abs=1e-4)
    assert judge.describe() == {"name": "reward", "stage": "abc", "offset": 0.7, "scored": 3}


def test_a_response_keeps_its_score() -> None:
    """Even if the scorer would give another score the second time: a tie stays a tie."""
    calls = []

    def scorer(prompts: list[EncodedPrompt], answers: list[Response]) -> list[float]:
        calls.append(len(answers))
        return [len(calls) + len(answer.ids) / 10 for answer in answers]

    judge = ScoreJudge("reward", scorer)
    prompts = asked(*QUESTIONS[:3])
    short, long = Response([5, 0], True, "x"), Response([6, 7, 0], True, "y")
    assert judge.scores(prompts, [short, short, short]) == [1.2, 1.2, 1.2]
    assert judge.scores(prompts, [short, long, short]) == [1.2, 2.3, 1.2]
    assert judge.scores(prompts, [short, long, short]) == [1.2, 2.3, 1.2]
    assert judge.compare(prompts, [short, short, long], [short, long, short]).outcomes == [0.5, 0.0, 1.0]
    assert calls == [3, 1, 1]


def test_a_score_that_is_no_number_is_an_error() -> None:
    judge = ScoreJudge("gold", lambda prompts, answers: [math.nan] * len(answers))
    with pytest.raises(ValueError, match="gold score of 'x' is nan"):
        judge.scores(asked(QUESTIONS[0]), [answer("x")])


def test_scores_that_differ_by_rounding_are_a_tie() -> None:
    assert compare_scores([1.0, 0.2, 0.5, 0.1 + 0.2], [0.0, 0.4, 0.5, 0.3]) == [1.0, 0.0, 0.5, 0.5]
