"""`lora-rlhf export --form adapter`: the adapter alone, as PEFT loads it, and vLLM where it has no score head."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from lora_rlhf.configs.catalogue import BY_ROLE
from lora_rlhf.export.card import write_card
from lora_rlhf.export.config import ExportConfig
from lora_rlhf.export.folder import copy_beside, licence_of, require_place, require_space
from lora_rlhf.export.manifest import MANIFEST, describe, hash_folder
from lora_rlhf.export.source import open_source
from lora_rlhf.model.adapters import complete, is_head, write_adapter_files
from lora_rlhf.system.disk import new_folder, remove_temporary, write_json

BESIDE = 64 * 2**20  # tokenizer, card and the like
WHY = "these are the trained adapter's own numbers, bit for bit, and nothing was merged"


def export_adapter(config: ExportConfig) -> dict[str, Any]:
    """Makes the folder `config.to`, whole or not at all, and returns its manifest.

    UserError for what is wrong with the run, the base or the place, before anything is written.
    """
    assert config.to is not None
    to = Path(config.to)
    require_place(to)
    source = open_source(config.folder, config.role, config.device, config.trust_remote_code)
    lora, state = source.adapter
    size = sum(tensor.nbytes for tensor in state.values())
    require_space(to, size + BESIDE)
    remove_temporary(to.absolute().parent, f"{to.name}.*")
    with new_folder(to.absolute()) as folder:
        written = deepcopy(lora)
        complete(written, any(is_head(name) for name in state), source.base_name)
        written.target_modules = sorted(lora.target_modules)  # PEFT would write a set, in another order each time
        write_adapter_files(folder, written, state)
        source.tokenizer.save_pretrained(folder)
        copy_beside(folder, source)
        facts = describe(source, config.base, "float32") | {
            "kind": "adapter",
            "mode": "none",
            "meaning": "the adapter alone, to be added to the base as it is loaded",
            "rank": lora.r,
            "licence": licence_of(source.base_folder),
            "bytes": size,
            "parity": {"measured": False, "why": WHY},
        }
        if BY_ROLE[config.role].scores:
            facts["score_offset"] = float(source.stage.manifest["results"]["offset"])
        write_card(folder, facts, source.run)
        facts["files"] = hash_folder(folder, {})
        write_json(folder / MANIFEST, facts)
    return facts
