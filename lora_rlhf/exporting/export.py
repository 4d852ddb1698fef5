"""`lora-rlhf export`: a trained role as a folder for others, whole or not at all."""

from pathlib import Path
from typing import Any

from lora_rlhf.configs.catalogue import BY_ROLE
from lora_rlhf.configs.values import check
from lora_rlhf.exporting.adapter import prepare_adapter
from lora_rlhf.exporting.card import write_card
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.folder import require_absent, require_space
from lora_rlhf.exporting.manifest import MANIFEST, hash_folder
from lora_rlhf.exporting.merged import prepare_merged
from lora_rlhf.exporting.reward import prepare_classifier
from lora_rlhf.exporting.source import Prepared, Source, open_source
from lora_rlhf.system.disk import new_folder, remove_temporary, write_json

SMALL_FILES = 64 * 2**20  # bytes of tokenizer, card and the like


def export(config: ExportConfig) -> dict[str, Any]:
    """Makes the folder `config.to`, and returns its manifest, which is written last.

    UserError for what is wrong with the run, the base or the folder, and for what the form cannot hold, before any long
    work. Stopped (exit 1) for an export that is further from the trained model than the limits allow; nothing is left
    of it then.
    """
    check(config)
    assert config.to is not None  # else the configuration was at fault
    to = Path(config.to)
    require_absent(to)
    source = open_source(config.folder, config.role, config.device, config.trust_remote_code)
    prepared = _prepare(config, source)
    require_space(to, prepared.num_bytes + SMALL_FILES)
    remove_temporary(to.absolute().parent, f"{to.name}.*")
    with new_folder(to.absolute()) as folder:
        facts = prepared.write(folder)
        write_card(folder, facts, source.run)
        facts["files"] = hash_folder(folder, facts.get("files", {}))
        write_json(folder / MANIFEST, facts)
    return facts


def _prepare(config: ExportConfig, source: Source) -> Prepared:
    if config.form == "adapter":
        return prepare_adapter(config, source)
    return prepare_classifier(config, source) if BY_ROLE[config.role].scores else prepare_merged(config, source)
