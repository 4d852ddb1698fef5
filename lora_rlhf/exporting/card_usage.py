"""How an export is run: lines to paste, for each library that reads its form."""

from collections.abc import Mapping
from typing import Any

from lora_rlhf.configs.catalogue import BY_ROLE
from lora_rlhf.model.files import TINYWORLD

EMBEDDED = 'files("lora_rlhf") / "tinyworld" / "base"'
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank takes

GENERATE = """import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto", device_map="auto")
messages = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**inputs.to(model.device), max_new_tokens=256, do_sample=True)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

SCORE = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForSequenceClassification.from_pretrained("FOLDER", dtype="auto", device_map="auto")
conversations = [[{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi, how can I help?"}]]
inputs = tokenizer.apply_chat_template(conversations, padding=True, return_dict=True, return_tensors="pt")
with torch.no_grad():
    scores = model(**inputs.to(model.device)).logits[:, 0] - model.config.score_offset"""

PEFT = """import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
base = AutoModelForCausalLM.from_pretrained("BASE", device_map="auto"QUANTIZED)
model = PeftModel.from_pretrained(base, "FOLDER")"""

NF4 = (
    ', quantization_config=BitsAndBytesConfig(\n    load_in_4bit=True, bnb_4bit_quant_type="nf4", '
    "bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16SKIP\n)"
)
QUANTIZED = {
    "nf4": NF4,
    "int8": ", quantization_config=BitsAndBytesConfig(load_in_8bit=TrueSKIP)",
    "none": "",
}


def usage(facts: Mapping[str, Any], base: str) -> str:
    """The part of a card that tells how to run it. `base`: the base model's name."""
    return f"FOLDER is where this file lies.\n\n{_OF_KIND[facts['kind']](facts, base)}"


def _merged(facts: Mapping[str, Any], _base: str) -> str:
    return "".join(
        [
            f"transformers:\n\n{_code(GENERATE, 'python')}\n",
            f"vLLM:\n\n{_code('vllm serve FOLDER', 'bash')}\n",
            _ollama(facts),
        ]
    )


def _gguf(facts: Mapping[str, Any], _base: str) -> str:
    file = f"FOLDER/model-{facts['gguf_type']}.gguf"
    return f"llama.cpp:\n\n{_code(f'llama-cli -m {file} --jinja -cnv', 'bash')}\n{_ollama(facts)}"


def _ollama(facts: Mapping[str, Any]) -> str:
    if facts["modelfile"] is not None:
        return f"Ollama: there is {facts['modelfile']}.\n".replace("`", "'").replace("<", "&lt;")
    return f"Ollama:\n\n{_code('ollama create NAME -f FOLDER/Modelfile && ollama run NAME', 'bash')}\n" + (
        "It samples from the whole distribution, as training does (temperature 1); "
        "`/set parameter temperature 0.7` makes it more certain.\n"
    )


def _classifier(facts: Mapping[str, Any], _base: str) -> str:
    remains = facts["score_offset"]
    why = (
        f"`score_offset` is {remains:.6g}: the class has no bias to hold it. It cancels between answers to compare."
        if remains
        else "`score_offset` is 0: the last norm's bias holds it."
    )
    text = f"transformers:\n\n{_code(SCORE, 'python')}\n{why}\n"
    if not facts["template_is_exact"]:
        text += (
            "\nThe chat template writes some conversations with other tokens than training had: scores of text may "
            "differ from the reward role's, those of its token ids do not.\n"
        )
    return text


def _adapter(facts: Mapping[str, Any], base: str) -> str:
    is_scorer = BY_ROLE[facts["role"]].scores
    quantized = QUANTIZED[facts["source"]["base"]["quantization"]]
    code = PEFT.replace("QUANTIZED", quantized)
    if base == TINYWORLD:  # which no hub has: it comes with the package
        code = f"from importlib.resources import files\n\n{code}".replace('"BASE"', f"str({EMBEDDED})")
        base = f"\"$(python -c 'from importlib.resources import files; print({EMBEDDED})')\""
    code = code.replace("BASE", base)
    # else the new head would be quantized, and the adapter's own could not take its place
    code = code.replace("SKIP", ', llm_int8_skip_modules=["score"]' if is_scorer else "")
    if is_scorer:
        code = code.replace("AutoModelForCausalLM", "AutoModelForSequenceClassification")
        code = code.replace('device_map="auto"', 'device_map="auto", num_labels=1')
        return (
            f"PEFT, on the base as it was in training:\n\n{_code(code, 'python')}\n"
            f"The score is its output less {facts['score_offset']:.6g}. vLLM refuses adapters with a head; "
            "without `--form adapter` the export is one model.\n"
        )
    rank = next((rank for rank in RANKS if rank >= facts["rank"]), None)
    serve = f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules NAME=FOLDER"
    vllm = (
        f"vLLM takes adapters of rank {RANKS[-1]} at most; this one has {facts['rank']}.\n"
        if rank is None
        else f"vLLM:\n\n{_code(serve, 'bash')}\n"
        "There the adapter meets the base's original weights, not those rounded to 4 bits that it was trained on: a "
        "merged export stays closer to what was trained.\n"
    )
    return f"PEFT, on the base as it was in training:\n\n{_code(code, 'python')}\n{vllm}"


_OF_KIND = {"merged": _merged, "classifier": _classifier, "adapter": _adapter, "gguf": _gguf}


def _code(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```\n"
