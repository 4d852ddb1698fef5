"""`lora-rlhf export --form adapter`: the adapter alone, for PEFT, and for vLLM if it has no score head."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from lora_rlhf.configs.catalogue import BY_ROLE
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.folder import copy_licence_and_code, licence_facts, save_tokenizer
from lora_rlhf.exporting.manifest import source_facts
from lora_rlhf.exporting.source import PreparedExport, Source
from lora_rlhf.model.adapters import is_head_parameter, set_adapter_fields, write_adapter_files

NOT_MEASURED_REASON = "these are the trained adapter's own numbers, bit for bit, and nothing was merged"


def prepare_adapter(config: ExportConfig, source: Source) -> PreparedExport:
    """Prepares the adapter as it was trained. Its config names the base by a name that other machines can find."""
    lora, state = source.adapter
    num_bytes = sum(tensor.nbytes for tensor in state.values())

    def write(folder: Path) -> dict[str, Any]:
        """Writes the adapter, its tokenizer and its licence; returns the facts of the export."""
        settings = deepcopy(lora)
        set_adapter_fields(settings, any(is_head_parameter(name) for name in state), source.base_name)
        write_adapter_files(folder, settings, state)
        save_tokenizer(folder, source.tokenizer)
        copy_licence_and_code(folder, source)
        facts = source_facts(source, config.base, "float32") | {
            "kind": "adapter",
            "mode": "none",
            "meaning": "the adapter alone, to be added to the base as it is loaded",
            "rank": lora.r,
            "licence": licence_facts(source.base_folder),
            "bytes": num_bytes,
            "parity": {"measured": False, "why": NOT_MEASURED_REASON},
        }
        if BY_ROLE[config.role].scores:
            facts["score_offset"] = float(source.stage.manifest["results"]["offset"])
        return facts

    return PreparedExport(num_bytes, write)
