"""`lora-rlhf export --form adapter`: the adapter alone, as PEFT loads it, and vLLM where it has no score head."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from lora_rlhf.configs.catalogue import BY_ROLE
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.folder import copy_beside, licence_of
from lora_rlhf.exporting.manifest import describe
from lora_rlhf.exporting.source import Prepared, Source
from lora_rlhf.model.adapters import complete, is_head, write_adapter_files

WHY = "these are the trained adapter's own numbers, bit for bit, and nothing was merged"


def prepare_adapter(config: ExportConfig, source: Source) -> Prepared:
    """The adapter as it was trained; its config names the base by a name that others know."""
    lora, state = source.adapter
    num_bytes = sum(tensor.nbytes for tensor in state.values())

    def write(folder: Path) -> dict[str, Any]:
        settings = deepcopy(lora)
        complete(settings, any(is_head(name) for name in state), source.base_name)
        settings.target_modules = sorted(lora.target_modules)  # PEFT would write a set, in another order each time
        write_adapter_files(folder, settings, state)
        source.tokenizer.save_pretrained(folder)
        copy_beside(folder, source)
        facts = describe(source, config.base, "float32") | {
            "kind": "adapter",
            "mode": "none",
            "meaning": "the adapter alone, to be added to the base as it is loaded",
            "rank": lora.r,
            "licence": licence_of(source.base_folder),
            "bytes": num_bytes,
            "parity": {"measured": False, "why": WHY},
        }
        if BY_ROLE[config.role].scores:
            facts["score_offset"] = float(source.stage.manifest["results"]["offset"])
        return facts

    return Prepared(num_bytes, write)
