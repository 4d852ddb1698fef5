"""`lora-rlhf export`: base and adapter as one plain model, or one GGUF file, compared with what was trained."""

import shutil
from pathlib import Path
from typing import Any

from lora_rlhf.exporting.config import ExportConfig, parse_size
from lora_rlhf.exporting.folder import licence_of, require_memory, write_companions
from lora_rlhf.exporting.gguf_form import become_gguf, gguf_bytes, plan_of
from lora_rlhf.exporting.manifest import PARITY, describe
from lora_rlhf.exporting.modelfile import write_modelfile
from lora_rlhf.exporting.parity import Trained, measure_export, measure_trained, too_far
from lora_rlhf.exporting.parity_table import table
from lora_rlhf.exporting.prompts import ParityPrompts, choose_prompts
from lora_rlhf.exporting.shards import num_bytes, write_shards
from lora_rlhf.exporting.source import DTYPES, Prepared, Source
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import Stopped

SCRATCH = "scratch"


def prepare_merged(config: ExportConfig, source: Source) -> Prepared:
    """The merged model. UserError for what GGUF cannot hold, and where the comparison does not fit into memory."""
    planned = source.planned(config.base, DTYPES[config.dtype])
    gguf = plan_of(config, source) if config.form == "gguf" else None
    prompts = choose_prompts(config, source) if config.parity == "full" else None
    if prompts is not None:
        require_memory(planned, source)
    context: int | None = getattr(source.config.get_text_config(), "max_position_embeddings", None)

    def write(folder: Path) -> dict[str, Any]:
        trained = None
        if prompts is not None:
            (folder / SCRATCH).mkdir()
            trained = measure_trained(config, source, prompts, folder / SCRATCH)
        hashes = write_shards(folder, planned, parse_size(config.max_shard_size))
        write_companions(folder, source, config.dtype)
        facts = describe(source, config.base, config.dtype)
        facts |= {"licence": licence_of(source.base_folder), "bytes": num_bytes(planned), "files": hashes}
        facts["parity"] = _compare(config, source, folder, prompts, trained)
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        weights = "."
        if gguf is not None:
            weights = f"./{become_gguf(config, folder, gguf)}"
            facts |= {"kind": "gguf", "gguf_type": config.gguf_type, "context": gguf.shape.context, "files": {}}
        facts["modelfile"] = write_modelfile(folder, source.tokenizer, weights, context)
        return facts

    size = num_bytes(planned) + _scratch_bytes(config, source, prompts)
    return Prepared(size + (gguf_bytes(config, planned) if gguf else 0), write)


def _compare(
    config: ExportConfig, source: Source, folder: Path, prompts: ParityPrompts | None, trained: Trained | None
) -> dict[str, Any]:
    """The parity report. Stopped for an export that is too far away, unless it is forced."""
    if prompts is None or trained is None:
        return {"measured": False, "why": "--parity none"}
    export, alternative = measure_export(config, source, trained, folder)
    faults = too_far(config, export, trained.effect)
    parity = {
        "measured": True,
        "prompts": len(trained.prompts),
        "prompts_from": prompts.origin,
        "positions": sum(trained.counted),
        "greedy_tokens": config.parity_tokens,
        "computed_in": source.computed_in,
        "export": export,
        "alternative": {"mode": "original" if config.base == "rounded" else "rounded", **alternative},
        "adapter_effect": trained.effect,
        "limits": {"max_kl_share": config.max_kl_share, "min_agreement": config.min_agreement},
        "passed": not faults,
        "forced": bool(faults),
    }
    if faults and not config.force:
        raise Stopped(f"{table(parity)}\n\nnot exported: " + "; ".join(faults) + f"\n--force makes {config.to} anyway")
    measured = {name: export[name] for name in ("kl_per_token", "top1_agreement")}
    record = {"format": 1, "computed_in": source.computed_in, "measured": measured, "prompts": trained.recorded}
    write_json(folder / PARITY, record)
    return parity


def _scratch_bytes(config: ExportConfig, source: Source, prompts: ParityPrompts | None) -> int:
    """The most that the trained model's logits take on disk."""
    num_prompts = 0 if prompts is None else len(prompts.encoded)
    vocabulary: int = source.config.get_text_config().vocab_size
    return num_prompts * config.parity_tokens * vocabulary * 4
