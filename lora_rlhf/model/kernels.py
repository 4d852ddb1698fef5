"""The kernels that a base computes with: its attention, and Liger-Kernel's fused norms, rotations and gates.

Both are chosen once the base is loaded, before anything is trained or sampled.
"""

import importlib
import importlib.util
import logging
from typing import Literal

import torch
from torch import Tensor

from lora_rlhf.model.base import first_line
from lora_rlhf.model.dense import Dequantize, keep_dense_copies
from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.precision import expected_rounding, largest_difference
from lora_rlhf.model.rotations import restore_rotations
from lora_rlhf.model.shared import BASE, SharedModel
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"]
FusedKernels = Literal["none", "liger"]

# transformers would fetch these kernels from the hub where the library is missing
FLASH_LIBRARIES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
LIGER = "liger_kernel"
# Of Liger's parts those that replace modules of the text model. The LM head stays: its losses are sums over tokens, and
# PPO needs each token's log-probability, which `algo/logprobs.py` computes without the logits in memory as well.
LIGER_PARTS = {"rope": True, "rms_norm": True, "layer_norm": True, "swiglu": True, "geglu": True}
LIGER_PARTS |= {"cross_entropy": False, "fused_linear_cross_entropy": False}
PROBE_TOKENS, NUM_LIKELY_TOKENS = 24, 10


def prepare_base(model: SharedModel, dequantize: Dequantize, attention: Attention, fused: FusedKernels) -> None:
    """Chooses what the base computes with: dense copies, attention, fused kernels. UserError for what it cannot."""
    keep_dense_copies(model.causal, dequantize)
    use_kernels(model, attention, fused)


def use_kernels(model: SharedModel, attention: Attention = "auto", fused: FusedKernels = "none") -> None:
    """Chooses both; "auto" leaves the attention that transformers takes (SDPA, where the family has it).

    UserError for kernels that are not installed, that this device or family does not have, or that compute something
    else than PyTorch.
    """
    if attention != "auto":
        _use_attention(model, attention)
    if fused == "liger":
        _use_liger(model)


def find_liger_fault(device: torch.device) -> str | None:
    """Why Liger's kernels cannot be used on this device; None if they can."""
    if importlib.util.find_spec(LIGER) is None:
        return "liger-kernel is not installed: pip install liger-kernel"
    if device.type != "cuda":
        return "Liger's kernels run on a GPU alone, and the base is on the CPU"
    return None


def _use_attention(model: SharedModel, attention: str) -> None:
    causal, library = model.causal, FLASH_LIBRARIES.get(attention)
    fault = None
    if library and importlib.util.find_spec(library) is None:
        fault = f"the library {library} is not installed"
    elif library and (model.device.type != "cuda" or causal.dtype == torch.float32):
        fault = "it needs a GPU and a base in 16 bits"
    else:
        try:
            causal.set_attn_implementation(attention)
        except (ImportError, ValueError) as error:
            fault = first_line(error)
        if fault is None and model.config._attn_implementation != attention:
            fault = f"{type(causal).__name__} cannot change its attention"
    if fault:
        raise UserError(f"attn_implementation is {attention}: {fault}; take --attn_implementation auto")


def _use_liger(model: SharedModel) -> None:
    """Puts Liger's modules into the model, and compares it with what it was. A second call does nothing."""
    if model.has_fused_kernels:
        return
    fault, family = find_liger_fault(model.device), model.config.model_type
    if fault is None:
        patches = importlib.import_module(f"{LIGER}.transformers.monkey_patch")
        if family not in patches.MODEL_TYPE_TO_APPLY_LIGER_FN:
            fault = f"Liger-Kernel has none for the family {family}"
    if fault:
        raise UserError(f"fused_kernels is liger: {fault}. Take --fused_kernels none")
    expected = _log_probabilities(model)
    likely = expected.topk(NUM_LIKELY_TOKENS).indices
    restore_rotations(model.causal)
    patches._apply_liger_kernel_to_instance(model=model.causal, **LIGER_PARTS)
    model.has_fused_kernels = True
    gap = largest_difference(_log_probabilities(model).gather(-1, likely), expected.gather(-1, likely))
    if gap > expected_rounding(model).few_tokens:
        raise UserError(
            f"fused_kernels is liger: a log-probability is {gap:.2g} nats off what PyTorch computes, more than by "
            "rounding; take --fused_kernels none, and another version of liger-kernel"
        )
    log.info("fused kernels: Liger's norms, rotations and gates, %.2g nats off PyTorch's at most", gap)


@torch.no_grad()
def _log_probabilities(model: SharedModel) -> Tensor:
    """The base's log-probabilities (T, V) of what follows each token of a random text."""
    ids = torch.randint(model.config.vocab_size, (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    with model.role(BASE):
        hidden = model.backbone(input_ids=ids.to(model.device), use_cache=False).last_hidden_state[0]
    return lm_logits(model.causal, hidden).float().log_softmax(-1)
