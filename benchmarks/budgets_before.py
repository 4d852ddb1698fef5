"""`budgets.measure` over the model code of commit a15017e: that checkout's `lora_rlhf`, with this one's plan.

Rooms that it lacks, and the plan, are this checkout's. What has another name or form there since is put in its place.
Called by budgets.py with the folder of the checkout; prints one JSON.
"""

import functools
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

OLD, NEW = Path(sys.argv[1]).resolve() / "lora_rlhf", Path(__file__).resolve().parents[1] / "lora_rlhf"
sys.path.insert(0, str(OLD.parent))
import lora_rlhf  # noqa: E402

lora_rlhf.__path__ = [str(OLD), str(NEW)]
import lora_rlhf.plan  # noqa: E402

lora_rlhf.plan.__path__ = [str(NEW / "plan")]
from torch.nn import functional  # noqa: E402


def _old(name: str) -> Any:
    return importlib.import_module(f"lora_rlhf.model.{name}")


decode_weights, lora_linear, skeleton = _old("decode_weights"), _old("lora_linear"), _old("skeleton")


class Linears:
    """The mode of a skeleton's adapted layers: None, or merged weights."""

    def __init__(self, peft: Any) -> None:
        self.peft = peft

    @property
    def mode(self) -> None:
        return None

    @mode.setter
    def mode(self, weights: dict[Any, Any] | None) -> None:
        lora_linear.install(self.peft)
        for layer, weight in (weights or {}).items():
            layer.forward = functools.partial(_merged_forward, layer.base_layer, weight)


def _merged_forward(base: Any, weight: Any, inputs: Any) -> Any:
    """As `decode_weights._forward` there, without its question after the role."""
    bias = None if base.bias is None else base.bias.to(weight.dtype)
    return functional.linear(inputs.to(weight.dtype), weight, bias).to(inputs.dtype)


def _merge(peft: Any) -> dict[Any, Any]:
    return {layer: decode_weights._summed(layer) for layer in lora_linear.wrapped_layers(peft)}


def _build(*args: Any) -> Any:
    old = skeleton.build(*args)
    peft = SimpleNamespace(modules=old.causal.modules)
    return SimpleNamespace(
        **vars(old), **{name: getattr(old, name) for name in METHODS}, linears=Linears(peft), peft=peft
    )


METHODS = ("hidden", "logits", "new_cache", "train", "eval")
skeleton.make_config, skeleton.build_skeleton, skeleton.count_model = skeleton.config_of, _build, skeleton.count
decode_weights.MergedWeights = _merge
for module, new_name, old_name in (
    (_old("drawing"), "draw_tokens", "draw"),
    (_old("engines"), "find_static_fault", "static_fault"),
    (_old("decode_static"), "PREFILL_TOKENS", "READ_TOKENS"),
    (_old("kv_cache").SlotCache, "copy_prompts", "place"),
):
    setattr(module, new_name, getattr(module, old_name))

from budgets import measure  # noqa: E402

print(json.dumps(measure(scoring_passes=2)))
