"""`lora-rlhf export`: a trained role as a folder for others, whole or not at all."""

from pathlib import Path
from typing import Any

from lora_rlhf.configs.catalogue import BY_ROLE
from lora_rlhf.configs.values import check
from lora_rlhf.exporting.adapter import prepare_adapter
from lora_rlhf.exporting.card import card_text
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.folder import require_absent, require_space
from lora_rlhf.exporting.lineage import read_lineage
from lora_rlhf.exporting.manifest import MANIFEST, hash_folder
from lora_rlhf.exporting.merged import prepare_merged
from lora_rlhf.exporting.reward import prepare_classifier
from lora_rlhf.exporting.source import PreparedExport, Source, open_source
from lora_rlhf.system.disk import new_folder, remove_temporary, write_json, write_text

SMALL_FILES = 64 * 2**20  # bytes of tokenizer, card and the like


def export(config: ExportConfig) -> dict[str, Any]:
    """Makes the folder `config.to`, and returns its manifest, which is written last.

    Raises UserError before any long work, for faults of the run, the base or the folder, and for a model that the
    output format cannot represent. Raises Stopped (exit 1) for an export that is further from the trained model than
    the limits allow; no folder is left then.
    """
    check(config)
    assert config.to is not None  # else the configuration was at fault
    target = Path(config.to)
    require_absent(target)
    source = open_source(config.folder, config.role, config.device, config.trust_remote_code, config.text_only)
    lineage = read_lineage(source.run, config.role)  # before the long work: a file of it may be at fault
    prepared_export = _prepare_form(config, source)
    require_space(target, prepared_export.num_bytes + SMALL_FILES)
    remove_temporary(target.absolute().parent, f"{target.name}.*")
    with new_folder(target.absolute()) as folder:
        manifest = prepared_export.write(folder)
        write_text(folder / "README.md", card_text(manifest, lineage))
        manifest["files"] = hash_folder(folder, manifest.get("files", {}))
        write_json(folder / MANIFEST, manifest)
    return manifest


def _prepare_form(config: ExportConfig, source: Source) -> PreparedExport:
    if config.form == "adapter":
        return prepare_adapter(config, source)
    return prepare_classifier(config, source) if BY_ROLE[config.role].scores else prepare_merged(config, source)
