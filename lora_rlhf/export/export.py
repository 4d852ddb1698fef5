"""`lora-rlhf export`: the folder of a merged model, from the checks before to the manifest that is written last."""

import logging
import shutil
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lora_rlhf.configs.values import check
from lora_rlhf.export.card import write_card
from lora_rlhf.export.config import ExportConfig, parse_size
from lora_rlhf.export.folder import licence_of, require_memory, require_place, require_space, write_companions
from lora_rlhf.export.gguf_form import become_gguf, gguf_bytes, plan_of
from lora_rlhf.export.manifest import MANIFEST, PARITY, describe, hash_folder
from lora_rlhf.export.modelfile import write_modelfile
from lora_rlhf.export.parity import Trained, measure_export, measure_trained, too_far
from lora_rlhf.export.parity_table import table
from lora_rlhf.export.prompts import Chosen, choose_prompts
from lora_rlhf.export.shards import num_bytes, write_shards
from lora_rlhf.export.source import DTYPES, Source, open_source
from lora_rlhf.model.merging import Planned
from lora_rlhf.system.disk import new_folder, remove_temporary, write_json
from lora_rlhf.system.errors import Stopped

log = logging.getLogger("lora_rlhf")

SCRATCH = "scratch"
BESIDE = 64 * 2**20  # tokenizer, card and the like


def export(config: ExportConfig) -> dict[str, Any]:
    """Makes the folder `config.to`, whole or not at all, and returns its manifest.

    UserError for what is wrong with the run, the base or the place, before any long work. Stopped (exit 1) for an
    export that is further from the trained model than the limits allow; nothing is left of it then.
    """
    check(config)
    assert config.to is not None
    to = Path(config.to)
    require_place(to)
    source = open_source(config.folder, config.role, config.device, config.trust_remote_code)
    planned = source.planned(config.base, DTYPES[config.dtype])
    plan = plan_of(config, source) if config.form == "gguf" else None
    chosen = choose_prompts(config, source) if config.parity == "full" else None
    if chosen is not None:
        require_memory(planned, source)
    needed = num_bytes(planned) + BESIDE + _scratch_bytes(config, source, chosen)
    require_space(to, needed + (gguf_bytes(config, planned) if plan else 0))
    remove_temporary(to.absolute().parent, f"{to.name}.*")
    with new_folder(to.absolute()) as folder:
        trained = None
        if chosen is not None:
            (folder / SCRATCH).mkdir()
            trained = measure_trained(config, source, chosen, folder / SCRATCH)
        facts = _write(config, source, folder, planned)
        facts["parity"] = _compare(config, source, folder, chosen, trained)
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        weights = "."
        if plan is not None:
            weights = f"./{become_gguf(config, folder, plan)}"
            facts |= {"kind": "gguf", "gguf_type": config.gguf_type, "context": plan.shape.context, "files": {}}
        facts["modelfile"] = write_modelfile(folder, source.tokenizer, weights, _context(source))
        write_card(folder, facts, source.run)
        facts["files"] = hash_folder(folder, facts["files"])
        write_json(folder / MANIFEST, facts)
    return facts


def _write(config: ExportConfig, source: Source, folder: Path, planned: list[Planned]) -> dict[str, Any]:
    """Weights and what stands beside them; returns what is known of them."""
    with tqdm(
        total=num_bytes(planned), desc="merging", unit="B", unit_scale=True, unit_divisor=1024, disable=None
    ) as bar:
        hashes = write_shards(folder, planned, parse_size(config.max_shard_size), bar.update)
    write_companions(folder, source, config.dtype)
    licence = {"licence": licence_of(source.base_folder)}
    return describe(source, config.base, config.dtype) | licence | {"bytes": num_bytes(planned), "files": hashes}


def _compare(
    config: ExportConfig, source: Source, folder: Path, chosen: Chosen | None, trained: Trained | None
) -> dict[str, Any]:
    """The parity report. Stopped for an export that is too far away, unless it is forced."""
    if chosen is None or trained is None:
        return {"measured": False, "why": "--parity none"}
    export, alternative = measure_export(config, source, trained, folder)
    faults = too_far(config, export, trained.effect)
    found = {
        "measured": True,
        "prompts": len(trained.prompts),
        "prompts_from": chosen.origin,
        "positions": sum(trained.counted),
        "greedy_tokens": config.parity_tokens,
        "computed_in": str(source.compute_dtype).removeprefix("torch."),
        "export": export,
        "alternative": {"mode": "original" if config.base == "rounded" else "rounded", **alternative},
        "adapter_effect": trained.effect,
        "limits": {"max_kl_share": config.max_kl_share, "min_agreement": config.min_agreement},
        "passed": not faults,
        "forced": bool(faults),
    }
    if faults and not config.force:
        raise Stopped(f"{table(found)}\n\nnot exported: " + "; ".join(faults) + f"\n--force makes {config.to} anyway")
    limits = {"kl_per_token": export["kl_per_token"], "top1_agreement": export["top1_agreement"]}
    recorded = {"format": 1, "computed_in": found["computed_in"], "measured": limits, "prompts": trained.recorded}
    write_json(folder / PARITY, recorded)
    return found


def _scratch_bytes(config: ExportConfig, source: Source, chosen: Chosen | None) -> int:
    """The most that the trained model's logits take on disk."""
    prompts = 0 if chosen is None else len(chosen.prompts)
    vocabulary: int = source.config.get_text_config().vocab_size
    return prompts * config.parity_tokens * vocabulary * 4


def _context(source: Source) -> int | None:
    """The most tokens that the model was made for."""
    return getattr(source.config.get_text_config(), "max_position_embeddings", None)
