"""`lora-rlhf export`: base and adapter as one plain model or one GGUF file, compared with the trained model."""

import shutil
from pathlib import Path
from typing import Any

from lora_rlhf.exporting.config import ExportConfig, parse_size
from lora_rlhf.exporting.folder import licence_facts, require_memory, write_companions
from lora_rlhf.exporting.gguf_form import estimated_gguf_bytes, plan_source_gguf, replace_by_gguf
from lora_rlhf.exporting.manifest import PARITY, source_facts
from lora_rlhf.exporting.modelfile import write_modelfile
from lora_rlhf.exporting.parity import TrainedAnswers, export_faults, measure_export, measure_trained
from lora_rlhf.exporting.parity_table import parity_table
from lora_rlhf.exporting.prompts import ParityPrompts, choose_prompts
from lora_rlhf.exporting.shards import total_bytes, write_shards
from lora_rlhf.exporting.source import DTYPES, PreparedExport, Source
from lora_rlhf.model.quantized import find_stored_settings
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import Stopped, UserError

SCRATCH = "scratch"


def prepare_merged(config: ExportConfig, source: Source) -> PreparedExport:
    """Prepares the merged model. Raises UserError if GGUF cannot hold it, or if a comparison needs too much memory."""
    if config.base == "original" and find_stored_settings(source.config):
        raise UserError("base original: this base is stored in 4 bits, and its original weights are not there")
    planned_tensors = source.planned_tensors(config.base, DTYPES[config.dtype])
    gguf_plan = plan_source_gguf(config, source) if config.form == "gguf" else None
    prompts = choose_prompts(config, source) if config.parity == "full" else None
    if prompts is not None:
        require_memory(planned_tensors, source)
    context: int | None = getattr(source.config.get_text_config(), "max_position_embeddings", None)

    def write(folder: Path) -> dict[str, Any]:
        """Writes the merged model; returns the facts of the export."""
        trained = None
        if prompts is not None:
            (folder / SCRATCH).mkdir()
            trained = measure_trained(config, source, prompts, folder / SCRATCH)
        hashes = write_shards(folder, planned_tensors, parse_size(config.max_shard_size))
        write_companions(folder, source, config.dtype)
        facts = source_facts(source, config.base, config.dtype)
        facts |= {"licence": licence_facts(source.base_folder), "bytes": total_bytes(planned_tensors), "files": hashes}
        facts["parity"] = _parity_facts(config, source, folder, prompts, trained)
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        weights_path = "."
        if gguf_plan is not None:
            weights_path = f"./{replace_by_gguf(config, folder, gguf_plan)}"
            facts |= {
                "kind": "gguf",
                "gguf_type": config.gguf_type,
                "context": gguf_plan.shape.max_context_tokens,
                "files": {},
            }
        facts["modelfile"] = write_modelfile(folder, source.tokenizer, weights_path, context)
        return facts

    num_bytes_needed = total_bytes(planned_tensors) + _scratch_bytes(config, source, prompts)
    return PreparedExport(num_bytes_needed + (estimated_gguf_bytes(config, planned_tensors) if gguf_plan else 0), write)


def _parity_facts(
    config: ExportConfig, source: Source, folder: Path, prompts: ParityPrompts | None, trained: TrainedAnswers | None
) -> dict[str, Any]:
    """Measures the export and returns its parity facts. Raises Stopped if it is too far away and not forced."""
    if prompts is None or trained is None:
        return {"measured": False, "why": "--parity none"}
    export, alternative = measure_export(config, source, trained, folder)
    faults = export_faults(config, export, trained.effect)
    parity = {
        "measured": True,
        "prompts": len(trained.prompts),
        "prompts_from": prompts.origin,
        "positions": sum(trained.num_counted),
        "greedy_tokens": config.parity_tokens,
        "computed_in": source.compute_dtype_name,
        "export": export,
        "alternative": {"mode": "original" if config.base == "rounded" else "rounded", **alternative},
        "adapter_effect": trained.effect,
        "limits": {"max_kl_share": config.max_kl_share, "min_agreement": config.min_agreement},
        "passed": not faults,
        "forced": bool(faults),
    }
    if faults and not config.force:
        raise Stopped(
            f"{parity_table(parity)}\n\nnot exported: " + "; ".join(faults) + f"\n--force makes {config.to} anyway"
        )
    recorded_figures = {name: export[name] for name in ("kl_per_token", "top1_agreement")}
    record = {
        "format": 1,
        "computed_in": source.compute_dtype_name,
        "measured": recorded_figures,
        "prompts": trained.recorded,
    }
    write_json(folder / PARITY, record)
    return parity


def _scratch_bytes(config: ExportConfig, source: Source, prompts: ParityPrompts | None) -> int:
    """The most bytes that the trained model's logits take on disk."""
    num_prompts = 0 if prompts is None else len(prompts.encoded)
    vocabulary: int = source.config.get_text_config().vocab_size
    return num_prompts * config.parity_tokens * vocabulary * 4
