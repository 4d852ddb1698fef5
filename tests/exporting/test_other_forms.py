"""The reward model as a plain classifier, and adapters alone: each says elsewhere what its role says here."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lora_rlhf.cli import main as cli
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.data.template import render_prompt, render_response
from lora_rlhf.exporting.sequence_classification import prepare_tokenizer
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.comparing import score_of_response
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError

pytestmark = pytest.mark.slow

Run = Callable[..., Path]
OFFSET = 0.37
ANSWERS = ["The boat is small.", "Say thank you!", "Nobody, as far as I know; but the keeper counts them in the night."]
CONVERSATIONS = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in zip(["Is it?", "Write a note to the baker.", "Who counts?"], ANSWERS, strict=True)
]
QUIET = "import transformers; transformers.utils.logging.disable_progress_bar();"
ELSEWHERE = (
    "import sys, json, torch\n"
    "for name in ('lora_rlhf', 'peft', 'bitsandbytes'): sys.modules[name] = None\n"
    "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
    "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
    "model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
    "inputs = tokenizer.apply_chat_template(json.loads(sys.argv[2]), padding=True, return_dict=True,\n"
    "                                       return_tensors='pt')\n"
    "with torch.no_grad(): scores = model(**inputs).logits[:, 0] - model.config.score_offset\n"
    "print(json.dumps(scores.tolist()))\n"
)


def with_offset(run: Path) -> Path:
    path = run / "reward" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"results": {"offset": OFFSET}}))
    return run


def exported(run: Path, to: Path, *words: str) -> dict:
    given = ["export", str(run), "--to", str(to), "--device", "cpu", "--parity_tokens", "8", *words]
    assert cli.main(given) == 0
    return json.loads((to / "export.json").read_text())


def role_scores(run: Path) -> list[float]:
    """What the reward role itself says, one conversation at a time."""
    record = json.loads((run / "reward" / "manifest.json").read_text())["base"]
    model = SharedModel(load_base(BaseSpec(record["name"], "nf4", "float32"), "cpu"))
    model.load_role("reward", run / "reward" / "adapter")
    scores = []
    for question, answer in CONVERSATIONS:
        prompt = Prompt((Message("user", question["content"]),))
        ids = render_prompt(model.tokenizer, prompt), render_response(model.tokenizer, prompt, answer["content"])
        with model.role("reward"):
            scores.append(score_of_response(model, *ids) - OFFSET)
    return scores


def plain_scores(folder: Path, side: str = "right") -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.padding_side == "right"
    inputs = tokenizer.apply_chat_template(
        CONVERSATIONS, padding=True, padding_side=side, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**inputs).logits[:, 0] - model.config.score_offset


def test_a_plain_classifier_scores_like_the_reward_role(tiny_run: Run, tmp_path: Path, architecture: str) -> None:
    """Of every architecture, with padding on either side; with positions that are learned, on the right alone."""
    run = with_offset(tiny_run(architecture))
    facts = exported(run, tmp_path / "out", "--role", "reward", "--dtype", "float32")
    expected = torch.tensor(role_scores(run))
    assert torch.allclose(plain_scores(tmp_path / "out"), expected, atol=1e-5)
    if architecture != "gpt2":
        assert torch.allclose(plain_scores(tmp_path / "out", "left"), expected, atol=1e-5)
    # a last norm with a bias can hold the offset, RMSNorm has none
    assert facts["score_offset"] == (0 if architecture in ("gpt2", "gpt_neox", "phi") else OFFSET)
    assert facts["template_is_exact"] and facts["architecture"].endswith("ForSequenceClassification")
    assert facts["parity"]["export"]["max_score_difference"] < 1e-5 < facts["parity"]["score_spread"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [facts["architecture"]] and config["id2label"] == {"0": "score"}
    assert config["pad_token_id"] not in (None, 0)  # 0 ends every answer


def test_text_to_score_in_a_process_without_this_package(tiny_run: Run, tmp_path: Path) -> None:
    run = with_offset(tiny_run("qwen2"))  # which pads with the token that ends an answer
    exported(run, tmp_path / "out", "--role", "reward", "--dtype", "float32")
    words = [sys.executable, "-I", "-c", QUIET + ELSEWHERE, str(tmp_path / "out"), json.dumps(CONVERSATIONS)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(role_scores(run), abs=1e-5)
    assert cli.main(["export", str(tmp_path / "out"), "--verify", "--device", "cpu"]) == 0


def test_a_reward_model_that_is_too_far_away_is_refused(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = with_offset(tiny_run())
    words = ["export", str(run), "--to", str(tmp_path / "out"), "--role", "reward", "--base", "original"]
    words += ["--parity_tokens", "8"]
    assert cli.main(words) == 1
    assert "max_score_share" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert cli.main([*words, "--force"]) == 0
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["parity"]["forced"] and facts["parity"]["alternative"]["score_difference"] < 0.01
    differences = [
        abs(one - other) for one, other in zip(plain_scores(tmp_path / "out"), role_scores(run), strict=True)
    ]
    assert max(differences) > 0.01


def tokenizer_with(tiny_model: Callable[[str], Path], name: str, template: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(name))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template",
    [
        # a line break behind the end, as in ChatML; a second end, as in Phi 3; no end at all
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}",
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
        "{% if not add_generation_prompt %}<|pad|>{% endif %}",
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}",
    ],
)
def test_a_conversation_ends_where_the_head_reads(tiny_model: Callable[[str], Path], template: str) -> None:
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    tokenizer = tokenizer_with(tiny_model, "llama", template)
    prompt = Prompt((Message("user", "Who counts?"),))
    trained = [*render_prompt(tokenizer, prompt), *render_response(tokenizer, prompt, "Nobody.")]
    asked = render_prompt(tokenizer, prompt)
    assert prepare_tokenizer(tokenizer, 320) == (1, True)
    whole = [{"role": "user", "content": "Who counts?"}, {"role": "assistant", "content": "Nobody."}]
    assert tokenizer.apply_chat_template(whole, return_dict=False) == trained and trained[-1] == 0
    assert tokenizer.apply_chat_template(whole[:1], add_generation_prompt=True, return_dict=False) == asked


def test_padding_never_ends_an_answer(tiny_model: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("qwen2"))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"
    assert prepare_tokenizer(tokenizer, 320) == (1, True) and tokenizer.pad_token == "<|pad|>"
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"] = backend["added_tokens"][:1]  # nothing but the end is special
    bare = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(json.dumps(backend)), eos_token="<|end|>"
    )
    rows = len(bare)
    assert prepare_tokenizer(bare, rows)[0] is None
    assert prepare_tokenizer(bare, rows + 1)[0] not in (None, 0) and bare.pad_token == "<|pad|>"


def quantized(**more: object) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **more)


def in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """Without bitsandbytes' own 16-bit kernel, which it takes on some CPUs whatever dtype was asked for."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


@torch.no_grad()
def test_plain_peft_loads_an_adapter(tiny_run: Run, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    run = tiny_run("llama", rslora=True)
    facts = exported(run, tmp_path / "out", "--form", "adapter")
    live = SharedModel(load_base(BaseSpec(str(tiny_model("llama")), "nf4", "float32"), "cpu"))
    live.load_role("policy", run / "ppo" / "adapter")
    ids = torch.tensor([[5, 9, 41, 300, 7, 7, 12]])
    with live.role("policy"):
        expected = live.causal(input_ids=ids).logits
    with live.role("base"):
        assert (live.causal(input_ids=ids).logits - expected).abs().max() > 0.1
    base = AutoModelForCausalLM.from_pretrained(
        tiny_model("llama"), dtype=torch.float32, quantization_config=quantized(bnb_4bit_compute_dtype=torch.float32)
    )
    found = PeftModel.from_pretrained(in_float32(base), tmp_path / "out")(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())
    assert facts["kind"] == "adapter" and facts["rank"] == 4
    # what vLLM documents: no modules_to_save, no bias, no DoRA, one rank, tensors of LoRA alone
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None and config["bias"] == "none" and not config["use_dora"]
    assert config["rank_pattern"] == {} and config["r"] == 4 and config["use_rslora"]
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] == "llama" and config["task_type"] == "CAUSAL_LM"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "--max-lora-rank 8" in card and str(tmp_path) not in card
    assert str(tmp_path) not in (tmp_path / "out" / "export.json").read_text()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


@torch.no_grad()
def test_plain_peft_loads_a_reward_adapter_as_a_classifier(
    tiny_run: Run, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    run = with_offset(tiny_run("llama"))
    facts = exported(run, tmp_path / "out", "--form", "adapter", "--role", "reward")
    base = AutoModelForSequenceClassification.from_pretrained(
        tiny_model("llama"),
        dtype=torch.float32,
        num_labels=1,
        quantization_config=quantized(bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["score"]),
    )
    model = PeftModel.from_pretrained(in_float32(base), tmp_path / "out")
    assert model.peft_config["default"].task_type == "SEQ_CLS"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for conversation, score in zip(CONVERSATIONS, role_scores(run), strict=True):
        ids = tokenizer.apply_chat_template(conversation, return_dict=False)
        found = model(input_ids=torch.tensor([ids])).logits[0, 0].item() - facts["score_offset"]
        assert found == pytest.approx(score, abs=1e-5)
    assert facts["score_offset"] == OFFSET and "num_labels=1" in (tmp_path / "out" / "README.md").read_text()


def test_a_family_without_a_classifier_is_refused() -> None:
    from transformers import AutoConfig

    from lora_rlhf.model.classifier import describe_classifier

    with pytest.raises(UserError, match=r"'cohere' reward model .* --form adapter"):
        describe_classifier(AutoConfig.for_model("cohere", hidden_size=64, num_attention_heads=4, num_hidden_layers=1))
