"""How to run an export: code to copy, for each library that reads its form."""

from collections.abc import Mapping
from typing import Any

from lora_rlhf.configs.catalogue import BY_ROLE
from lora_rlhf.model.files import TINYWORLD
from lora_rlhf.system.shown_text import for_markdown

EMBEDDED_BASE = 'files("lora_rlhf") / "tinyworld" / "base"'
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank takes

GENERATE_CODE = """import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto", device_map="auto")
messages = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**inputs.to(model.device), max_new_tokens=256, do_sample=True)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

SCORE_CODE = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForSequenceClassification.from_pretrained("FOLDER", dtype="auto", device_map="auto")
conversations = [[{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi, how can I help?"}]]
inputs = tokenizer.apply_chat_template(conversations, padding=True, return_dict=True, return_tensors="pt")
with torch.no_grad():
    scores = model(**inputs.to(model.device)).logits[:, 0] - model.config.score_offset"""

PEFT_CODE = """import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
base = AutoModelForCausalLM.from_pretrained("BASE", device_map="auto"QUANTIZED)
model = PeftModel.from_pretrained(base, "FOLDER")"""

NF4_ARGUMENT = (
    ', quantization_config=BitsAndBytesConfig(\n    load_in_4bit=True, bnb_4bit_quant_type="nf4", '
    "bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16SKIP\n)"
)
QUANTIZATION_ARGUMENTS = {
    "nf4": NF4_ARGUMENT,
    "int8": ", quantization_config=BitsAndBytesConfig(load_in_8bit=TrueSKIP)",
    "none": "",
}


def usage_section(facts: Mapping[str, Any], base: str) -> str:
    """The part of a card on how to run the export.

    facts: the export's manifest. base: the base model's name.
    """
    return f"FOLDER is where this file lies.\n\n{_USAGE_BY_KIND[facts['kind']](facts, base)}"


def _merged_usage(facts: Mapping[str, Any], _base: str) -> str:
    """Code for transformers, vLLM and Ollama."""
    return "".join(
        [
            f"transformers:\n\n{_code_block(GENERATE_CODE, 'python')}\n",
            f"vLLM:\n\n{_code_block('vllm serve FOLDER', 'bash')}\n",
            _ollama_usage(facts),
        ]
    )


def _gguf_usage(facts: Mapping[str, Any], _base: str) -> str:
    file = f"FOLDER/model-{facts['gguf_type']}.gguf"
    return f"llama.cpp:\n\n{_code_block(f'llama-cli -m {file} --jinja -cnv', 'bash')}\n{_ollama_usage(facts)}"


def _ollama_usage(facts: Mapping[str, Any]) -> str:
    """Commands for Ollama, or why the export has no Modelfile."""
    if facts["modelfile"] is not None:
        return f"Ollama: there is {for_markdown(facts['modelfile'])}.\n"
    return f"Ollama:\n\n{_code_block('ollama create NAME -f FOLDER/Modelfile && ollama run NAME', 'bash')}\n" + (
        "It samples from the whole distribution, as training does (temperature 1); "
        "`/set parameter temperature 0.7` makes it more certain.\n"
    )


def _classifier_usage(facts: Mapping[str, Any], _base: str) -> str:
    """Code for transformers, and the offset to subtract from the output of the class."""
    offset = facts["score_offset"]
    offset_note = (
        f"`score_offset` is {offset:.6g}: the class has no bias to hold it. It cancels between answers to compare."
        if offset
        else "`score_offset` is 0: the last norm's bias holds it."
    )
    text = f"transformers:\n\n{_code_block(SCORE_CODE, 'python')}\n{offset_note}\n"
    if not facts["template_is_exact"]:
        text += (
            "\nThe chat template writes some conversations with other tokens than training had: scores of text may "
            "differ from the reward role's, those of its token ids do not.\n"
        )
    return text


def _adapter_usage(facts: Mapping[str, Any], base: str) -> str:
    """Code for PEFT, and a command for vLLM if it takes the adapter."""
    is_scorer = BY_ROLE[facts["role"]].scores
    quantization_argument = QUANTIZATION_ARGUMENTS[facts["source"]["base"]["quantization"]]
    code = PEFT_CODE.replace("QUANTIZED", quantization_argument)
    if base == TINYWORLD:  # no hub has it: its files come with the package
        code = f"from importlib.resources import files\n\n{code}".replace('"BASE"', f"str({EMBEDDED_BASE})")
        base = f"\"$(python -c 'from importlib.resources import files; print({EMBEDDED_BASE})')\""
    code = code.replace("BASE", base)
    # without this the new head would be quantized, and the adapter's head could not replace it
    code = code.replace("SKIP", ', llm_int8_skip_modules=["score"]' if is_scorer else "")
    if is_scorer:
        code = code.replace("AutoModelForCausalLM", "AutoModelForSequenceClassification")
        code = code.replace('device_map="auto"', 'device_map="auto", num_labels=1')
        return (
            f"PEFT, on the base as it was in training:\n\n{_code_block(code, 'python')}\n"
            f"The score is its output less {facts['score_offset']:.6g}. vLLM refuses adapters with a head; "
            "without `--form adapter` the export is one model.\n"
        )
    rank = next((rank for rank in VLLM_RANKS if rank >= facts["rank"]), None)
    serve_command = f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules NAME=FOLDER"
    vllm_text = (
        f"vLLM takes adapters of rank {VLLM_RANKS[-1]} at most; this one has {facts['rank']}.\n"
        if rank is None
        else f"vLLM:\n\n{_code_block(serve_command, 'bash')}\n"
        "There the adapter meets the base's original weights, not those rounded to 4 bits that it was trained on: a "
        "merged export stays closer to what was trained.\n"
    )
    return f"PEFT, on the base as it was in training:\n\n{_code_block(code, 'python')}\n{vllm_text}"


_USAGE_BY_KIND = {
    "merged": _merged_usage,
    "classifier": _classifier_usage,
    "adapter": _adapter_usage,
    "gguf": _gguf_usage,
}


def _code_block(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```\n"
