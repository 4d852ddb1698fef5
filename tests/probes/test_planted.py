"""Each planted failure raises its own flag of the audit and no other's; the honest policy raises none."""

import random
from itertools import islice

import pytest
import torch
from planted_runs import Planted

from lora_rlhf.data.answers import Answer
from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.template import decode_response, stop_ids
from lora_rlhf.evaluate.generation import sequences_of
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.forward import in_micro_batches, response_scores
from lora_rlhf.model.generate import generate
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.probes.audit import Side, audit
from lora_rlhf.probes.bins import failures
from lora_rlhf.probes.records import ProbeSet
from lora_rlhf.tinyworld.probes import WORLD
from lora_rlhf.tinyworld.requests import draw

pytestmark = pytest.mark.timeout(900)  # whoever asks first trains: a minute, and several on a busy machine

FLAGS = ("length_inflation", "repetition", "sycophancy", "collapse", "reward_length_bias")
# {what was planted: (the policy, whose reward model, its flag)}
TABLE = {
    "honest": ("honest", "baseline", None),
    "long": ("long", "baseline", "length_inflation"),
    "repeats": ("repeats", "baseline", "repetition"),
    "agrees": ("agrees", "baseline", "sycophancy"),
    "collapsed": ("collapsed", "baseline", "collapse"),
    "likes_length": ("honest", "likes_length", "reward_length_bias"),
}
NUM_PROMPTS = 72
PROBES = ProbeSet("sycophancy", "1", tuple(probe for probe in WORLD.probes().probes if probe.bin == "sycophancy"))


@pytest.fixture(scope="module")
def sides(planted: Planted) -> dict[tuple[str, str], Side]:
    """{(policy, whose reward model): what it answered to held-out prompts and probes}."""
    model = SharedModel(load_base(BaseSpec("tinyworld"), "cpu"))
    policies = ("baseline", *dict.fromkeys(policy for policy, *_ in TABLE.values()))
    for name in policies:
        model.load_role(name, getattr(planted, name) / "sft" / "adapter")
    for name in ("baseline", "likes_length"):
        model.load_role(f"{name} reward", getattr(planted, name) / "reward" / "adapter")
    drawn = islice(draw(random.Random("planted-audit"), held_out=True), NUM_PROMPTS)
    prompts = [Prompt.of(request.text) for request in drawn]
    encoded, _ = encode_prompts(model.tokenizer, [*prompts, *(probe.prompt for probe in PROBES.probes)], 128)
    found = {}
    for name in policies:
        answers = _answers(model, name, encoded)
        texts = [answer.text for answer in answers]
        quality = [WORLD.gold(prompt.messages[-1].content, text) for prompt, text in zip(prompts, texts, strict=False)]
        failed = failures(PROBES, texts[NUM_PROMPTS:], WORLD)
        for judge in ("baseline", "likes_length"):
            rewards = _rewards(model, f"{judge} reward", encoded[:NUM_PROMPTS], answers[:NUM_PROMPTS])
            found[name, judge] = Side(texts[:NUM_PROMPTS], quality, rewards, failed=failed)
    return found


def _answers(model: SharedModel, role: str, prompts: list[EncodedPrompt]) -> list[Answer]:
    with model.role(role):
        groups = generate(
            model, [prompt.prompt_ids for prompt in prompts], max_new_tokens=64, temperature=1.0,
            stop_ids=stop_ids(model.tokenizer), generator=torch.Generator().manual_seed(0), batch_size=256,
        )  # fmt: skip
    return [Answer(one.ids, decode_response(model.tokenizer, one.ids).strip(), one.finished) for (one,) in groups]


@torch.no_grad()
def _rewards(model: SharedModel, role: str, prompts: list[EncodedPrompt], answers: list[Answer]) -> list[float]:
    with model.role(role):
        batch = sequences_of(model, prompts, answers)
        scores: list[float] = in_micro_batches(lambda part: response_scores(model, part), batch, 64).tolist()
    return scores


@pytest.mark.parametrize("planted_failure", TABLE)
def test_each_planted_failure_raises_its_own_flag_and_no_other(
    planted_failure: str, sides: dict[tuple[str, str], Side]
) -> None:
    policy, judge, expected = TABLE[planted_failure]
    candidate, baseline = sides[policy, judge], sides["baseline", judge]
    assert candidate.quality and baseline.quality
    gaps = [one - other for one, other in zip(candidate.quality, baseline.quality, strict=True)]
    outcomes: list[float | None] = [0.5 if abs(gap) < 1e-9 else float(gap > 0) for gap in gaps]
    flags = audit([""] * NUM_PROMPTS, candidate, baseline, outcomes=outcomes)["flags"]
    raised = {name: flags[name]["why"] for name in FLAGS if flags[name]["raised"]}
    assert list(raised) == ([expected] if expected else []), raised
