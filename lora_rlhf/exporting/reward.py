"""`lora-rlhf export --role reward`: the reward model as a plain sequence classifier, its scores compared."""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.data.template import stop_ids
from lora_rlhf.exporting.config import ExportConfig, parse_size
from lora_rlhf.exporting.folder import copy_licence_and_code, licence_facts, save_tokenizer, write_config
from lora_rlhf.exporting.manifest import PARITY, source_facts
from lora_rlhf.exporting.parity import response_length
from lora_rlhf.exporting.parity_table import parity_table
from lora_rlhf.exporting.prompts import choose_prompts
from lora_rlhf.exporting.sequence_classification import classifier_settings, classifier_tensors, prepare_tokenizer
from lora_rlhf.exporting.shards import total_bytes, write_shards
from lora_rlhf.exporting.source import DTYPES, PreparedExport, Source
from lora_rlhf.model.base import load_base
from lora_rlhf.model.classifier import Classifier, PlainClassifier, describe_classifier, score_without_adapter
from lora_rlhf.model.comparing import greedy_responses, score_of_response
from lora_rlhf.model.heads import SCORE
from lora_rlhf.model.memory import free_memory
from lora_rlhf.model.merging import Mode
from lora_rlhf.model.shared import BASE, SharedModel
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import Stopped

LEAST_DIFFERENCE = 1e-4  # of scores: an export with a smaller one passes, even if all scores are almost equal


class ScoredConversations(NamedTuple):
    """Conversations as ids, the reward role's score of each, and the head's score without the adapter."""

    ids: list[list[int]]
    scores: list[float]
    without_adapter: list[float]


def prepare_classifier(config: ExportConfig, source: Source) -> PreparedExport:
    """Prepares the reward model as a plain classifier. Raises UserError for an architecture without such a class."""
    classifier = describe_classifier(source.config)
    offset = float(source.stage.manifest["results"]["offset"])
    head = source.adapter[1][f"base_model.model.{SCORE}.weight"]
    planned_tensors, remaining_offset = classifier_tensors(
        source.parts(), classifier, head, offset, mode=config.base, dtype=DTYPES[config.dtype], device=source.device
    )

    def write(folder: Path) -> dict[str, Any]:
        """Writes the classifier; returns the facts of the export."""
        scored_conversations = _score_conversations(config, source, head, offset) if config.parity == "full" else None
        hashes = write_shards(folder, planned_tensors, parse_size(config.max_shard_size))
        is_exact = _write_classifier_files(config, source, classifier, remaining_offset, folder)
        facts = source_facts(source, config.base, config.dtype) | {
            "kind": "classifier",
            "architecture": classifier.architecture,
            "score_offset": remaining_offset,
            "template_is_exact": is_exact,
            "licence": licence_facts(source.base_folder),
            "bytes": total_bytes(planned_tensors),
            "files": hashes,
        }
        facts["parity"] = _parity_facts(config, source, folder, scored_conversations, classifier, remaining_offset)
        return facts

    return PreparedExport(total_bytes(planned_tensors), write)


def _write_classifier_files(
    config: ExportConfig, source: Source, classifier: Classifier, remaining_offset: float, folder: Path
) -> bool:
    """Writes config, tokenizer and licence. Returns whether the template writes the tokens of training."""
    pad, is_exact = prepare_tokenizer(source.tokenizer, source.config.get_text_config().vocab_size)
    write_config(folder, source, config.dtype, classifier_settings(classifier, remaining_offset, pad))
    save_tokenizer(folder, source.tokenizer)
    copy_licence_and_code(folder, source)
    return is_exact


def _score_conversations(config: ExportConfig, source: Source, head: Tensor, offset: float) -> ScoredConversations:
    """The reward role's scores of the base's greedy answers, each to its own prompt and to the next one."""
    prompts = [encoded.prompt_ids for encoded in choose_prompts(config, source).encoded]
    model = SharedModel(load_base(source.spec, str(source.device)))
    model.load_role(source.role, source.stage.adapter)
    stops = set(stop_ids(source.tokenizer))
    with model.role(BASE):
        greedy = greedy_responses(model, prompts, config.parity_tokens)
    answers = [ids[: response_length(ids, stops)] for ids in greedy]
    pairs = [(prompt, answers[number - shift]) for shift in (0, 1) for number, prompt in enumerate(prompts)]
    scores = []
    for prompt, answer in tqdm(pairs, desc="reward role", unit="response", disable=None):
        with model.role(source.role):
            scores.append(score_of_response(model, prompt, answer) - offset)
    ids = [[*prompt, *answer] for prompt, answer in pairs]
    scores_without_adapter = [score_without_adapter(model, head, row) - offset for row in ids]
    del model
    free_memory()
    return ScoredConversations(ids, scores, scores_without_adapter)


def _parity_facts(
    config: ExportConfig,
    source: Source,
    folder: Path,
    conversations: ScoredConversations | None,
    classifier: Classifier,
    remaining_offset: float,
) -> dict[str, Any]:
    """Measures the export and returns its parity facts. A score is the class's output less the remaining offset.

    Raises Stopped if the scores are too far away and not forced.
    """
    if conversations is None:
        return {"measured": False, "why": "--parity none"}
    other_mode: Mode = "original" if config.base == "rounded" else "rounded"
    plain_classifier = PlainClassifier(
        str(folder), source.compute_dtype, source.device, source.base["trust_remote_code"]
    )
    export = _score_figures(
        [plain_classifier.score(ids) - remaining_offset for ids in conversations.ids], conversations.scores
    )
    plain_classifier.load_merged_weights(source.parts(), other_mode, DTYPES[config.dtype], classifier.norm_bias)
    alternative = _score_figures(
        [plain_classifier.score(ids) - remaining_offset for ids in conversations.ids], conversations.scores
    )
    spread = statistics.pstdev(conversations.scores)
    max_difference = max(config.max_score_share * spread, LEAST_DIFFERENCE)
    is_passed = export["score_difference"] <= max_difference
    parity = {
        "measured": True,
        "prompts": len(conversations.ids) // 2,
        "prompts_from": choose_prompts(config, source).origin,
        "positions": len(conversations.ids),
        "computed_in": source.compute_dtype_name,
        "export": export,
        "alternative": {"mode": other_mode, **alternative},
        "adapter_effect": _score_figures(conversations.without_adapter, conversations.scores),
        "score_spread": spread,
        "offset_outside_the_class": remaining_offset,
        "limits": {"max_score_share": config.max_score_share},
        "passed": is_passed,
        "forced": not is_passed,
    }
    if not is_passed and not config.force:
        raise Stopped(
            f"{parity_table(parity)}\n\nnot exported: scores are {export['score_difference']:.3g} from the reward "
            f"role's on average, the most is {max_difference:.3g} (max_score_share {config.max_score_share:g} "
            f"of their standard deviation {spread:.3g})\n--force makes {config.to} anyway"
        )
    rows = [{"ids": ids, "score": score} for ids, score in zip(conversations.ids, conversations.scores, strict=True)]
    write_json(folder / PARITY, {"format": 1, "computed_in": source.compute_dtype_name, "scores": rows})
    return parity


def _score_figures(scores: list[float], trained_scores: list[float]) -> dict[str, float]:
    """Mean and largest difference of scores, and the share of pairs of conversations in the same order."""
    differences = [abs(score - trained_score) for score, trained_score in zip(scores, trained_scores, strict=True)]
    first, second = torch.triu_indices(len(scores), len(scores), 1)
    signs = [
        torch.sign(values[first] - values[second]) for values in (torch.tensor(scores), torch.tensor(trained_scores))
    ]
    return {
        "score_difference": statistics.fmean(differences),
        "max_score_difference": max(differences),
        "same_order": float((signs[0] == signs[1]).float().mean()),
    }
