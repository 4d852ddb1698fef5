"""`lora-rlhf export --form gguf`: an exported folder becomes one GGUF file; whether it can is known before merging."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.folder import write_companions
from lora_rlhf.exporting.gguf import GgufPlan, GgufType, plan_gguf, require_gguf, write_gguf
from lora_rlhf.exporting.gguf_shape import require_family
from lora_rlhf.exporting.manifest import PARITY
from lora_rlhf.exporting.source import Source
from lora_rlhf.model.merging import Planned

BYTES: dict[GgufType, float] = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32}  # of a number in a matrix
INSIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def plan_of(config: ExportConfig, source: Source) -> GgufPlan:
    """What the file will say of the model. UserError for one that GGUF has no equal of; nothing has been written."""
    require_gguf()
    require_family(source.config.model_type)
    with tempfile.TemporaryDirectory() as folder:
        write_companions(Path(folder), source, config.dtype)
        return plan_gguf(Path(folder), f"{source.base_name} {source.role}")


def gguf_bytes(config: ExportConfig, planned: Sequence[Planned]) -> int:
    """About what the file takes on disk."""
    return int(
        sum(tensor.entry.num_bytes / tensor.entry.dtype.itemsize for tensor in planned) * BYTES[config.gguf_type]
    )


def become_gguf(config: ExportConfig, folder: Path, plan: GgufPlan) -> str:
    """Writes the GGUF file of the merged model in a folder, and removes what it holds now; returns its name."""
    weights = sorted(folder.glob("*.safetensors"))
    name = f"model-{config.gguf_type}.gguf"
    total = sum(path.stat().st_size for path in weights)
    with tqdm(total=total, desc="writing GGUF", unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:
        write_gguf(folder, folder / name, plan, config.gguf_type, bar.update)
    for path in (*weights, *folder.glob("*.safetensors.index.json"), *(folder / name for name in (*INSIDE, PARITY))):
        path.unlink(missing_ok=True)
    return name
