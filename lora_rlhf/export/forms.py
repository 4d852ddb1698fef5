"""`lora-rlhf export`: each form that a trained adapter can leave in."""

from typing import Any

from lora_rlhf.configs.catalogue import BY_ROLE
from lora_rlhf.configs.values import check
from lora_rlhf.export.adapter import export_adapter
from lora_rlhf.export.config import ExportConfig
from lora_rlhf.export.export import export
from lora_rlhf.export.reward import export_reward


def export_form(config: ExportConfig) -> dict[str, Any]:
    """Makes the folder that was asked for and returns its manifest. Errors are those of the form's own function."""
    check(config)
    if config.form == "adapter":
        return export_adapter(config)
    return export_reward(config) if BY_ROLE[config.role].scores else export(config)
