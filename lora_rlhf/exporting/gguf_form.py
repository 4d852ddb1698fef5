"""`lora-rlhf export --form gguf`: makes one GGUF file of an exported folder; checks before merging if that works."""

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
from lora_rlhf.model.merging import PlannedTensor

BYTES_PER_NUMBER: dict[GgufType, float] = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32}  # of a number in a matrix
FILES_IN_GGUF = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def plan_source_gguf(config: ExportConfig, source: Source) -> GgufPlan:
    """Plans the GGUF file of a source. Raises UserError if GGUF cannot describe the model; leaves no files."""
    require_gguf()
    require_family(source.config.model_type)
    with tempfile.TemporaryDirectory() as folder:
        write_companions(Path(folder), source, config.dtype)
        return plan_gguf(Path(folder), f"{source.base_name} {source.role}")


def estimated_gguf_bytes(config: ExportConfig, planned_tensors: Sequence[PlannedTensor]) -> int:
    """The approximate size of the file on disk."""
    return int(
        sum(tensor.entry.num_bytes / tensor.entry.dtype.itemsize for tensor in planned_tensors)
        * BYTES_PER_NUMBER[config.gguf_type]
    )


def replace_by_gguf(config: ExportConfig, folder: Path, plan: GgufPlan) -> str:
    """Writes the GGUF file of the merged model in a folder, removes the files that it replaces, returns its name."""
    weight_files = sorted(folder.glob("*.safetensors"))
    name = f"model-{config.gguf_type}.gguf"
    total_bytes = sum(path.stat().st_size for path in weight_files)
    with tqdm(
        total=total_bytes, desc="writing GGUF", unit="B", unit_scale=True, unit_divisor=1024, disable=None
    ) as bar:
        write_gguf(folder, folder / name, plan, config.gguf_type, bar.update)
    for path in (
        *weight_files,
        *folder.glob("*.safetensors.index.json"),
        *(folder / name for name in (*FILES_IN_GGUF, PARITY)),
    ):
        path.unlink(missing_ok=True)
    return name
