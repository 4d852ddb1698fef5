"""A run in memory: answers hang on prompt, seed and role alone, and scores are those that PPO is given."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_rlhf.chat.loaded_run import load_run
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.template import render_prompt, render_response
from lora_rlhf.model.drawing import Response
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from tests.chat.conftest import OFFSET

PROMPTS = ["Is the river wide?", "Hello", "Say thank you to the baker."]
SHORT: dict[str, Any] = {"max_response_tokens": 8}


def test_answers_come_in_order_from_their_seed_and_role(run: Path) -> None:
    with load_run(run, device="cpu") as loaded:
        assert loaded.roles == ("base", "sft", "reward", "policy") and loaded.role == "policy"
        answers = loaded.generate(PROMPTS, seed=3, **SHORT)
        assert answers == loaded.generate(PROMPTS, seed=3, batch_size=1, **SHORT)
        assert answers != loaded.generate(PROMPTS, seed=4, **SHORT)
        greedy = loaded.generate(PROMPTS, temperature=0.0, **SHORT)
        for role in ("sft", "base"):
            assert loaded.generate(PROMPTS, temperature=0.0, role=role, **SHORT) != greedy
        messages = [[{"role": "user", "content": text}] for text in PROMPTS]
        assert loaded.generate(messages, temperature=0.0, **SHORT) == greedy
    with load_run(run, role="sft", device="cpu") as other:
        assert other.role == "sft"
        assert other.generate(PROMPTS, role="policy", seed=3, **SHORT) == answers
    assert all(len(answer.ids) == 8 or answer.finished for answer in answers)


def raw_score(model: SharedModel, prompt_ids: list[int], response_ids: list[int]) -> float:
    """The head's output at the last token of one sequence without padding."""
    with torch.no_grad(), model.role("reward"):
        hidden = model.backbone(input_ids=torch.tensor([[*prompt_ids, *response_ids]])).last_hidden_state
        return float(model.head(hidden[0, -1].float()))


def test_scores_are_the_reward_heads_less_the_offset(run: Path) -> None:
    """Texts end in the template's stop token; what was generated is scored as it was drawn."""
    with load_run(run, device="cpu") as loaded:
        answer = Response([7, 8, 9], False, "as drawn")
        responses: list[str | Response] = ["Yes.", answer, "No, the river is brave!"]
        scores = loaded.score(PROMPTS[0], responses)
        assert scores == pytest.approx(loaded.score(PROMPTS[0], responses, batch_size=1), abs=1e-6)
        prompt, tokenizer = Prompt.of(PROMPTS[0]), loaded.model.tokenizer
        ids = render_prompt(tokenizer, prompt)
        expected = [
            raw_score(loaded.model, ids, render_response(tokenizer, prompt, "Yes.")) - OFFSET,
            raw_score(loaded.model, ids, [7, 8, 9]) - OFFSET,
        ]
        assert scores[:2] == pytest.approx(expected, abs=1e-5)
        assert loaded.score(PROMPTS[0], []) == []


def test_what_a_run_cannot_do_is_said(run: Path) -> None:
    with load_run(run, device="cpu") as loaded:
        with pytest.raises(UserError, match=r"no role 'critic'; there are: base, sft, reward, policy"):
            loaded.generate(PROMPTS, role="critic")
        with pytest.raises(UserError, match="role 'reward' scores and does not write"):
            loaded.generate(PROMPTS, role="reward")
        with pytest.raises(UserError, match="prompts is one text; give a list"):
            loaded.generate(PROMPTS[0])
        with pytest.raises(UserError, match="answers is one text; give a list"):
            loaded.score(PROMPTS[0], "Yes.")
        with pytest.raises(BadRow, match="a message's role is not one of"):
            loaded.generate([[{"content": "Hello"}]])
        with pytest.raises(UserError, match="an answer has 300 tokens; with its prompt it exceeds the context of 256"):
            loaded.score(PROMPTS[0], [Response([7] * 300, False)])
    with pytest.raises(RuntimeError, match="was closed; load it again with load_run"):
        loaded.generate(PROMPTS)
    with pytest.raises(UserError, match="no role 'critic'"):
        load_run(run, role="critic", device="cpu")


def test_stages_of_another_base_and_missing_ones_are_refused(run: Path) -> None:
    path = run / "reward" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["base"]["source_hash"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with load_run(run, device="cpu") as loaded:
        with pytest.raises(UserError, match="reward was trained on another base than"):
            loaded.score(PROMPTS[0], ["Yes."])
        path.unlink()
        assert loaded.roles == ("base", "sft", "policy")
        with pytest.raises(UserError, match="no reward stage there"):
            loaded.score(PROMPTS[0], ["Yes."])
