"""What plain transformers and plain PEFT make of a checkpoint, an export and an adapter, against this project."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.engines import pick_engine
from lora_rlhf.model.forward import Sequences, response_logprobs
from lora_rlhf.model.generate import Engine, generate_seeded
from lora_rlhf.model.shared import BASE, SharedModel

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [40, 41, 42], [100, 101, 102, 103, 104], [200, 7]]
RESPONSES = [[50, 60, 70, 80], [51, 61, 71, 81, 91, 33], [52, 62], [53, 63, 73]]
NEW_TOKENS = 12


def load_plain(folder: Path, **settings: Any) -> PreTrainedModel:
    """The model of a folder by transformers alone, in float32; RuntimeError for tensors missing from its files."""
    config = AutoConfig.from_pretrained(folder)
    auto = AutoModelForCausalLM if is_causal(config) else AutoModelForImageTextToText
    model, report = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **settings)
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise RuntimeError(f"{folder} loads with {report}")
    return model.eval()


def is_causal(config: Any) -> bool:
    """Whether the checkpoint as a whole is a text model: wrappers load with their towers."""
    names = config.architectures or [""]
    return "ConditionalGeneration" not in names[0] and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def open_shared(folder: Path, quantization: str = "none") -> SharedModel:
    return SharedModel(load_base(BaseSpec(str(folder), quantization), "cpu"))


@torch.no_grad()
def plain_logits(model: torch.nn.Module, ids: list[int]) -> Tensor:
    """(T, V) logits of one row without padding, a mask or a cache."""
    logits: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def sequences() -> Sequences:
    """PROMPTS padded on the left and RESPONSES on the right."""
    prompt, response = max(map(len, PROMPTS)), max(map(len, RESPONSES))
    return Sequences(
        torch.tensor([[0] * (prompt - len(row)) + row for row in PROMPTS]),
        torch.tensor([[False] * (prompt - len(row)) + [True] * len(row) for row in PROMPTS]),
        torch.tensor([row + [0] * (response - len(row)) for row in RESPONSES]),
        torch.tensor([[True] * len(row) + [False] * (response - len(row)) for row in RESPONSES]),
    )


def forward_agrees(folder: Path) -> dict[str, float]:
    """The largest difference, in nats, of a padded batch's log-probabilities from those of each row alone."""
    shared, plain = open_shared(folder), load_plain(folder)
    with shared.role(BASE), torch.no_grad():
        logprobs = response_logprobs(shared, sequences())[0]
    gap = 0.0
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        logits = plain_logits(plain, prompt + response)[len(prompt) - 1 : -1].log_softmax(-1)
        expected = logits.gather(1, torch.tensor(response)[:, None])[:, 0]
        gap = max(gap, float((logprobs[row, : len(response)] - expected).abs().max()))
    if not gap < 1e-4:
        raise AssertionError(f"log-probabilities of a padded batch are off by {gap:.2g}")
    return {"logprob_gap": gap}


def greedy_agrees(folder: Path, engine: Engine = "plain") -> dict[str, float]:
    """How many of the rows get, in one batch with a cache, the tokens that plain transformers gives them alone.

    UserError where the model's configuration or a try rules the engine out.
    """
    shared, plain = open_shared(folder), load_plain(folder)
    sizes: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "temperature": 0.0, "batch_size": 8}
    with shared.role(BASE):
        pick_engine(engine, shared, PROMPTS, context=max(map(len, PROMPTS)) + NEW_TOKENS, **sizes)
        responses = generate_seeded(shared, PROMPTS, [[0, 1] for _ in PROMPTS], stop_ids=[], engine=engine, **sizes)
    right = sum(
        all(response.ids == _greedy(plain, prompt) for response in group)
        for prompt, group in zip(PROMPTS, responses, strict=True)
    )
    if right < len(PROMPTS):
        raise AssertionError(f"{right} of {len(PROMPTS)} greedy responses are those of plain transformers")
    return {f"greedy_rows_{engine}": right}


def roles_mix(folder: Path) -> dict[str, float]:
    """The largest difference of the logits of two roles in one batch from those of each role by itself."""
    shared = open_shared(folder, "nf4")
    shared.add_role("policy", LoraSettings(rank=2))
    for name, parameter in shared.named_parameters_of("policy"):
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter.data, std=0.1)
    ids = torch.tensor([PROMPTS[0], PROMPTS[0]])
    with shared.mixture([BASE, "policy"]) as mixture:
        mixture.assign(torch.tensor([0, 1]))
        mixed = shared.backbone(input_ids=ids, use_cache=False).last_hidden_state
    gap = 0.0
    for row, role in enumerate((BASE, "policy")):
        with shared.role(role), torch.no_grad():
            alone = shared.backbone(input_ids=ids[:1], use_cache=False).last_hidden_state[0]
        gap = max(gap, float((mixed[row] - alone).abs().max()))
    if not gap < 1e-3:
        raise AssertionError(f"hidden states of two roles in one batch are off by {gap:.2g}")
    return {"mixture_gap": gap}


def _greedy(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        ids.append(int(plain_logits(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


def _trained(folder: Path) -> SharedModel:
    shared = open_shared(folder / "base", "nf4")
    shared.load_role("policy", folder / "run" / "ppo" / "adapter")
    return shared


def export_in_transformers(folder: Path) -> dict[str, float]:
    """The largest difference of the export's logits, in plain transformers, from the trained model's."""
    shared, plain = _trained(folder), load_plain(folder / "merged")
    gap = 0.0
    for prompt in PROMPTS:
        with shared.role("policy"):
            expected = plain_logits(shared.causal, prompt)
        gap = max(gap, float((plain_logits(plain, prompt) - expected).abs().max()))
    if not gap < 1e-3:
        raise AssertionError(f"the export's logits are off by {gap:.2g}")
    return {"export_gap": gap}


def adapter_in_peft(folder: Path) -> dict[str, float]:
    """The same of the exported adapter in plain PEFT, on the base that `load_base` rounds to 4 bits."""
    shared = _trained(folder)
    base = load_base(BaseSpec(str(folder / "base"), "nf4"), "cpu").model
    loaded = PeftModel.from_pretrained(base, folder / "adapter").eval()
    gap = 0.0
    for prompt in PROMPTS:
        with shared.role("policy"):
            expected = plain_logits(shared.causal, prompt)
        gap = max(gap, float((plain_logits(loaded, prompt) - expected).abs().max()))
    if not gap < 1e-3:
        raise AssertionError(f"the adapter's logits in plain PEFT are off by {gap:.2g}")
    keys = json.loads((folder / "adapter" / "adapter_config.json").read_text())["target_modules"]
    return {"adapter_gap": gap, "targets": len(keys)}
