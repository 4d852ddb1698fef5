"""`lora-rlhf export --role reward`: the reward model as a plain sequence classifier, its scores compared."""

import gc
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.data.template import stop_ids
from lora_rlhf.exporting.config import ExportConfig, parse_size
from lora_rlhf.exporting.folder import copy_beside, licence_of, write_config
from lora_rlhf.exporting.manifest import PARITY, describe
from lora_rlhf.exporting.parity import response_end
from lora_rlhf.exporting.parity_table import table
from lora_rlhf.exporting.prompts import choose_prompts
from lora_rlhf.exporting.sequence_classification import classifier_settings, classifier_tensors, prepare_tokenizer
from lora_rlhf.exporting.shards import num_bytes, write_shards
from lora_rlhf.exporting.source import DTYPES, Prepared, Source
from lora_rlhf.model.base import load_base
from lora_rlhf.model.classifier import Classifier, PlainClassifier, classifier_of, score_without_adapter
from lora_rlhf.model.comparing import greedy_responses, score_of_response
from lora_rlhf.model.heads import SCORE
from lora_rlhf.model.merging import Mode
from lora_rlhf.model.shared import BASE, SharedModel
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import Stopped

LEAST_DIFFERENCE = 1e-4  # of a score: below, an export passes even where scores hardly differ


class Scored(NamedTuple):
    """Conversations as ids, the reward role's score of each, and the head's without the adapter."""

    ids: list[list[int]]
    scores: list[float]
    without_adapter: list[float]


def prepare_classifier(config: ExportConfig, source: Source) -> Prepared:
    """The reward model as a plain classifier. UserError for an architecture without such a class."""
    classifier = classifier_of(source.config)
    offset = float(source.stage.manifest["results"]["offset"])
    head = source.adapter[1][f"base_model.model.{SCORE}.weight"]
    planned, remains = classifier_tensors(
        source.parts(), classifier, head, offset, mode=config.base, dtype=DTYPES[config.dtype], device=source.device
    )

    def write(folder: Path) -> dict[str, Any]:
        scored = _score(config, source, head, offset) if config.parity == "full" else None
        hashes = write_shards(folder, planned, parse_size(config.max_shard_size))
        is_exact = _write_companions(config, source, classifier, remains, folder)
        facts = describe(source, config.base, config.dtype) | {
            "kind": "classifier",
            "architecture": classifier.architecture,
            "score_offset": remains,
            "template_is_exact": is_exact,
            "licence": licence_of(source.base_folder),
            "bytes": num_bytes(planned),
            "files": hashes,
        }
        facts["parity"] = _compare(config, source, folder, scored, classifier, remains)
        return facts

    return Prepared(num_bytes(planned), write)


def _write_companions(
    config: ExportConfig, source: Source, classifier: Classifier, remains: float, folder: Path
) -> bool:
    """Config, tokenizer and licence; returns whether the template writes the tokens of training."""
    pad, is_exact = prepare_tokenizer(source.tokenizer, source.config.get_text_config().vocab_size)
    write_config(folder, source, config.dtype, classifier_settings(classifier, remains, pad))
    source.tokenizer.save_pretrained(folder)
    copy_beside(folder, source)
    return is_exact


def _score(config: ExportConfig, source: Source, head: Tensor, offset: float) -> Scored:
    """The reward role's scores of the base's greedy answers, each to its own prompt and to the next one."""
    prompts = [encoded.prompt_ids for encoded in choose_prompts(config, source).encoded]
    model = SharedModel(load_base(source.spec, str(source.device)))
    model.load_role(source.role, source.stage.adapter)
    stops = set(stop_ids(source.tokenizer))
    with model.role(BASE):
        greedy = greedy_responses(model, prompts, config.parity_tokens)
    answers = [ids[: response_end(ids, stops)] for ids in greedy]
    pairs = [(prompt, answers[number - shift]) for shift in (0, 1) for number, prompt in enumerate(prompts)]
    scores = []
    for prompt, answer in tqdm(pairs, desc="reward role", unit="response", disable=None):
        with model.role(source.role):
            scores.append(score_of_response(model, prompt, answer) - offset)
    ids = [[*prompt, *answer] for prompt, answer in pairs]
    without = [score_without_adapter(model, head, row) - offset for row in ids]
    del model
    gc.collect()
    return Scored(ids, scores, without)


def _compare(
    config: ExportConfig, source: Source, folder: Path, scored: Scored | None, classifier: Classifier, remains: float
) -> dict[str, Any]:
    """The parity report, in which scores are the class's output less what the config says remains."""
    if scored is None:
        return {"measured": False, "why": "--parity none"}
    other: Mode = "original" if config.base == "rounded" else "rounded"
    plain = PlainClassifier(str(folder), source.compute_dtype, source.device, source.base["trust_remote_code"])
    export = _figures([plain.score(ids) - remains for ids in scored.ids], scored.scores)
    plain.fill(source.parts(), other, DTYPES[config.dtype], classifier.norm_bias)
    alternative = _figures([plain.score(ids) - remains for ids in scored.ids], scored.scores)
    spread = statistics.pstdev(scored.scores)
    most = max(config.max_score_share * spread, LEAST_DIFFERENCE)
    passed = export["score_difference"] <= most
    parity = {
        "measured": True,
        "prompts": len(scored.ids) // 2,
        "prompts_from": choose_prompts(config, source).origin,
        "positions": len(scored.ids),
        "computed_in": source.computed_in,
        "export": export,
        "alternative": {"mode": other, **alternative},
        "adapter_effect": _figures(scored.without_adapter, scored.scores),
        "score_spread": spread,
        "offset_outside_the_class": remains,
        "limits": {"max_score_share": config.max_score_share},
        "passed": passed,
        "forced": not passed,
    }
    if not passed and not config.force:
        raise Stopped(
            f"{table(parity)}\n\nnot exported: scores are {export['score_difference']:.3g} from the reward role's on "
            f"average, the most is {most:.3g} (max_score_share {config.max_score_share:g} of their standard deviation "
            f"{spread:.3g})\n--force makes {config.to} anyway"
        )
    rows = [{"ids": ids, "score": score} for ids, score in zip(scored.ids, scored.scores, strict=True)]
    write_json(folder / PARITY, {"format": 1, "computed_in": source.computed_in, "scores": rows})
    return parity


def _figures(scores: list[float], trained: list[float]) -> dict[str, float]:
    """Mean and largest difference, and how many pairs of conversations both put in the same order."""
    differences = [abs(score - before) for score, before in zip(scores, trained, strict=True)]
    first, second = torch.triu_indices(len(scores), len(scores), 1)
    signs = [torch.sign(values[first] - values[second]) for values in (torch.tensor(scores), torch.tensor(trained))]
    return {
        "score_difference": statistics.fmean(differences),
        "max_score_difference": max(differences),
        "same_order": float((signs[0] == signs[1]).float().mean()),
    }
