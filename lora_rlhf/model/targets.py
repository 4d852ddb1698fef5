"""Which layers of a base carry an adapter: the linear layers of its text model, by name or by group."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lora_rlhf.model.architecture import text_backbone
from lora_rlhf.system.errors import UserError

ALL_LINEAR = "all-linear"
NOTED_SHARE = 0.05  # users are told if a larger share of the weights gets no adapter
# Groups of layers, by what a part of their path contains. State spaces and short convolutions belong to no group.
GROUPS = {"attention": ("attn", "attention"), "mlp": ("mlp", "feed_forward", "ffn", "fc1", "fc2", "shared_expert")}
ROUTERS = frozenset({"router", "gate", "shared_expert_gate"})  # they choose experts, and get no adapter
TOWERS = frozenset({"embed_tokens_extend"})  # parts of a text model that read images and sound
SPARSE = frozenset({"compressor", "indexer"})  # they select or compress distant tokens: no gradient in short texts


@dataclass(frozen=True)
class Targets:
    """The layers of a base that can carry an adapter, and the names by which PEFT finds them.

    layers: their paths. modules: the paths of all modules, in which a name must find these layers alone. sizes: how
    many numbers each matrix of the text model holds, by the path of its layer; embeddings and LM head are left out.
    """

    layers: tuple[str, ...]
    modules: tuple[str, ...]
    sizes: Mapping[str, int]

    def find(self, chosen: Collection[str]) -> set[str]:
        """The paths of the chosen layers: "all-linear", groups, or ends of paths. UserError if one has no layer."""
        return {layer for target in chosen for layer in self._find(target)}

    def share_without(self, chosen: Collection[str]) -> float:
        """The share of the matrices' numbers that are in no chosen layer."""
        adapted = sum(self.sizes.get(layer, 0) for layer in self.find(chosen))
        return 1 - adapted / max(1, sum(self.sizes.values()))

    def peft_names(self, chosen: Collection[str]) -> list[str]:
        """Names for PEFT's `target_modules`, the shortest that find the chosen layers and no others."""
        layers = self.find(chosen)
        names: set[str] = set()
        for layer in sorted(layers):
            if not any(_ends_with(layer, name) for name in names):
                names.add(self._shortest_name(layer, layers))
        return sorted(names)

    def _find(self, target: str) -> list[str]:
        """The paths of one target's layers."""
        if target == ALL_LINEAR:
            layers = list(self.layers)
        elif parts := GROUPS.get(target):
            layers = [layer for layer in self.layers if any(part in layer for part in parts)]
        else:
            layers = [layer for layer in self.layers if _ends_with(layer, target)]
        if not layers:
            last_parts = sorted({layer.rpartition(".")[2] for layer in self.layers})
            raise UserError(
                f"LoRA target {target!r} is no linear layer of this base's text model; give {ALL_LINEAR}, "
                f"{', '.join(GROUPS)}, or names of: {', '.join(last_parts)}"
            )
        return layers

    def _shortest_name(self, layer: str, layers: Collection[str]) -> str:
        """The shortest end of the layer's path that no module outside `layers` has."""
        parts = layer.split(".")
        similar_modules = [module for module in self.modules if _ends_with(module, parts[-1])]
        for count in range(1, len(parts)):
            name = ".".join(parts[-count:])
            if all(module in layers for module in similar_modules if _ends_with(module, name)):
                return name
        return layer


def note_without_adapter(share: float, chosen: Collection[str]) -> str | None:
    """A note for users if all layers were chosen and a large share of the matrices has no adapter; else None."""
    if share < NOTED_SHARE or ALL_LINEAR not in chosen:
        return None
    return (
        f"{100 * share:.0f} % of the text model's weights get no adapter: those of experts, which also stay in 16 "
        "bits, of routers and of state spaces"
    )


def find_targets(causal: PreTrainedModel) -> Targets:
    """The layers that can carry an adapter. Call it before PEFT wraps any."""
    modules = dict(causal.named_modules())
    backbone = text_backbone(causal)
    root = next(path for path, module in modules.items() if module is backbone)
    layers = [f"{root}.{path}" if root else path for path in _adaptable_paths(backbone, causal)]
    adapted_names = {name for name in {path.rpartition(".")[2] for path in layers} if _is_adapted_by_peft(name, causal)}
    layers = [path for path in layers if path.rpartition(".")[2] in adapted_names]
    prefix = f"{root}." if root else ""
    sizes: dict[str, int] = {}
    for name, parameter in backbone.named_parameters():
        path = prefix + name.rpartition(".")[0]
        module = modules[path]
        is_tower = not TOWERS.isdisjoint(name.split("."))
        if isinstance(module, nn.Embedding) or module is causal.get_output_embeddings() or is_tower:
            continue
        if isinstance(module, nn.Linear) and name.endswith(".weight"):
            sizes[path] = module.in_features * module.out_features  # one in 4 bits has fewer, larger numbers
        elif parameter.dim() > 1:
            sizes[path] = sizes.get(path, 0) + parameter.numel()
    return Targets(tuple(layers), tuple(modules), sizes)


def _adaptable_paths(backbone: nn.Module, causal: PreTrainedModel) -> Iterator[str]:
    """The paths inside the text model of linear layers that compute W x and are neither head, router nor tower."""
    head = causal.get_output_embeddings()
    for path, module in backbone.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head and not _is_custom_layer(module):
            parts = path.split(".")
            if (ROUTERS | TOWERS | SPARSE).isdisjoint(parts) and not _is_read_by_kernel(path, backbone):
                yield path


def _is_custom_layer(module: nn.Module) -> bool:
    """Whether a class of transformers' models computes something else than W x, as routers and grouped layers do."""
    kind = type(module)
    is_own = kind.__module__.startswith("transformers.models.") and "forward" in vars(kind)
    return is_own and kind.__name__ != "FalconLinear"


def _is_read_by_kernel(path: str, backbone: nn.Module) -> bool:
    """Whether this is the last layer of a Mamba 2 block: its fast kernel reads the weight without calling the layer."""
    parent, _, name = path.rpartition(".")
    block = backbone.get_submodule(parent)
    return name == "out_proj" and hasattr(block, "A_log") and hasattr(block, "in_proj") and not hasattr(block, "x_proj")


def _is_adapted_by_peft(name: str, causal: PreTrainedModel) -> bool:
    """Whether PEFT adapts the layers of this name on this architecture.

    In mixtures of experts it takes the names that single experts had in older versions of transformers for those of the
    joined ones, even if they name a dense layer or a shared expert.
    """
    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, causal, None)
    except ValueError:  # one of two names that stand for one layer
        return False
    return name in config.target_modules


def _ends_with(path: str, name: str) -> bool:
    """Whether PEFT would match the path: a name matches the whole path or the end of it."""
    return path == name or path.endswith(f".{name}")
