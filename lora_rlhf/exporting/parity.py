"""How close an export is to the model that was trained: 4-bit base and adapter against the merged model, reloaded.

One model is in memory at a time: the trained model's logits are on disk while the other is measured. The report also
has the same figures of the other way to merge, and of the base without the adapter, because an error can only be judged
by the effect of the adapter. All models compute in the dtype of the trained model, so that only weights differ.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from lora_rlhf.configs.catalogue import REWARD
from lora_rlhf.data.template import stop_ids
from lora_rlhf.exporting.closeness import Closeness, common_prefix_length, measure_closeness
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.prompts import ParityPrompts
from lora_rlhf.exporting.source import DTYPES, Source
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.comparing import greedy_responses, load_merged_weights, response_logits, score_of_response
from lora_rlhf.model.dense import keep_dense_copies
from lora_rlhf.model.memory import free_memory
from lora_rlhf.model.merging import Mode
from lora_rlhf.model.shared import BASE, SharedModel
from lora_rlhf.model.tensor_files import Entry, read_index, write_tensors
from lora_rlhf.runs.folder import ADAPTER, find_stage, has_stage

log = logging.getLogger("lora_rlhf")

LEAST_KL = 1e-4  # nats per token: an export with a smaller KL passes, even if the adapter has almost no effect
TOP_TOKENS = 8  # most probable tokens of each position that are recorded for later checks of the export


@dataclass(frozen=True)
class TrainedAnswers:
    """The trained model's answers, for a comparison when it is no longer in memory.

    greedy: its responses, all of the same length. counted: how many tokens of each belong to the response; the others
    come after its end. logits: the folder of their files. recorded: their most probable tokens, for parity.json.
    effect: how far the base without the adapter is from the trained model.
    """

    prompts: list[list[int]]
    greedy: list[list[int]]
    num_counted: list[int]
    logits: Path
    recorded: list[dict[str, Any]]
    effect: dict[str, float]

    def response(self, number: int) -> list[int]:
        """A greedy response up to its end."""
        return self.greedy[number][: self.num_counted[number]]


def measure_trained(config: ExportConfig, source: Source, prompts: ParityPrompts, scratch: Path) -> TrainedAnswers:
    """Loads the base in 4 bits with the adapter, measures both, and frees them. Writes logits to `scratch`."""
    model = SharedModel(load_base(source.spec, str(source.device)))
    keep_dense_copies(model.causal)
    model.load_role(source.role, source.stage.adapter)
    prompt_ids = [encoded.prompt_ids for encoded in prompts.encoded]
    with model.role(source.role):
        greedy = greedy_responses(model, prompt_ids, config.parity_tokens)
    with model.role(BASE):
        base_greedy = greedy_responses(model, prompt_ids, config.parity_tokens)
    stops = set(stop_ids(source.tokenizer))
    num_counted = [response_length(response, stops) for response in greedy]
    total, recorded_rows = Closeness(), []
    for number, prompt in enumerate(tqdm(prompt_ids, desc="trained model", unit="prompt", disable=None)):
        response = greedy[number][: num_counted[number]]
        with model.role(source.role):
            logits = response_logits(model, prompt, response)
        with model.role(BASE):
            total += measure_closeness(logits, response_logits(model, prompt, response))
        write_tensors(scratch / f"{number}.safetensors", [Entry("logits", logits.dtype, tuple(logits.shape))], [logits])
        recorded_rows.append(_record_row(prompt, greedy[number], logits))
    effect = total.figures() | _greedy_figures(greedy, base_greedy, num_counted)
    del model
    free_memory()
    return TrainedAnswers(prompt_ids, greedy, num_counted, scratch, recorded_rows, effect)


def measure_export(
    config: ExportConfig, source: Source, trained: TrainedAnswers, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of the export in `folder`, and of the other way to merge, which replaces it in memory."""
    spec = BaseSpec(str(folder), "none", source.compute_dtype_name, trust_remote_code=source.base["trust_remote_code"])
    model = SharedModel(load_base(spec, str(source.device)))
    measurements = [_measure_plain_model(model, trained, "this export")]
    other_mode: Mode = "original" if config.base == "rounded" else "rounded"
    load_merged_weights(model, source.parts(), other_mode, DTYPES[config.dtype])
    measurements.append(_measure_plain_model(model, trained, f"on the {other_mode} base"))
    del model
    free_memory()
    if _has_reward_model(source):
        differences = _reward_differences(source, trained, [responses for _, responses in measurements])
        export, alternative = (
            figures | reward_figures for (figures, _), reward_figures in zip(measurements, differences, strict=True)
        )
        return export, alternative
    return measurements[0][0], measurements[1][0]


def export_faults(config: ExportConfig, export: dict[str, float], effect: dict[str, float]) -> list[str]:
    """Why an export is refused; empty if it is not."""
    faults = []
    max_kl = max(config.max_kl_share * effect["kl_per_token"], LEAST_KL)
    if export["kl_per_token"] > max_kl:
        faults.append(
            f"KL per token from the trained model is {export['kl_per_token']:.3g} nats, the most is {max_kl:.3g} "
            f"(max_kl_share {config.max_kl_share:g} of the adapter's own {effect['kl_per_token']:.3g})"
        )
    if export["top1_agreement"] < config.min_agreement:
        faults.append(
            f"the most probable token is the trained model's at {export['top1_agreement']:.2%} of positions, the "
            f"least is {config.min_agreement:.2%} (min_agreement)"
        )
    return faults


def _measure_plain_model(
    model: SharedModel, trained: TrainedAnswers, title: str
) -> tuple[dict[str, float], list[list[int]]]:
    """The figures of a plain model without adapters, and its greedy responses."""
    total = Closeness()
    with model.role(BASE):
        greedy = greedy_responses(model, trained.prompts, len(trained.greedy[0]))
        for number, prompt in enumerate(tqdm(trained.prompts, desc=title, unit="prompt", disable=None)):
            stored_logits = read_index([trained.logits / f"{number}.safetensors"])["logits"]
            trained_logits = stored_logits.rows(0, stored_logits.shape[0])
            total += measure_closeness(trained_logits, response_logits(model, prompt, trained.response(number)))
    return total.figures() | _greedy_figures(trained.greedy, greedy, trained.num_counted), greedy


def _greedy_figures(
    trained_responses: list[list[int]], other_responses: list[list[int]], num_counted: list[int]
) -> dict[str, float]:
    """How far two models' greedy responses agree.

    same_response: share of responses that are equal up to their end; greedy_identical: up to their last token;
    greedy_agreement: mean share of tokens before the first difference.
    """
    common_lengths = [common_prefix_length(*pair) for pair in zip(trained_responses, other_responses, strict=True)]
    lengths = [len(response) for response in trained_responses]
    return {
        "same_response": sum(common >= count for common, count in zip(common_lengths, num_counted, strict=True))
        / len(common_lengths),
        "greedy_identical": sum(common == length for common, length in zip(common_lengths, lengths, strict=True))
        / len(common_lengths),
        "greedy_agreement": sum(common / length for common, length in zip(common_lengths, lengths, strict=True))
        / len(common_lengths),
    }


def _reward_differences(
    source: Source, trained: TrainedAnswers, other_responses: list[list[list[int]]]
) -> list[dict[str, float]]:
    """Mean absolute differences of the reward model's score, between the trained model's and each other responses.

    The reward model is loaded only if responses differ.
    """
    stops = set(stop_ids(source.tokenizer))
    ended_responses = [
        [tuple(response[: response_length(response, stops)]) for response in responses] for responses in other_responses
    ]
    trained_responses = [tuple(trained.response(number)) for number in range(len(trained.prompts))]
    if all(responses == trained_responses for responses in ended_responses):
        return [{"reward_difference": 0.0} for _ in other_responses]
    score = functools.cache(_load_scorer(source, trained))
    means = []
    for responses in ended_responses:
        pairs = enumerate(zip(trained_responses, responses, strict=True))
        differences = [
            0.0
            if trained_response == other_response
            else abs(score(number, trained_response) - score(number, other_response))
            for number, (trained_response, other_response) in pairs
        ]
        means.append({"reward_difference": sum(differences) / len(differences)})
    return means


def _has_reward_model(source: Source) -> bool:
    """Whether the run has a reward model on the same base."""
    if not has_stage(source.run, REWARD.name):
        return False
    base = find_stage(source.run / REWARD.name, REWARD.name).manifest["base"]
    return all(base[key] == source.base[key] for key in ("source_hash", "quantization"))


def _load_scorer(source: Source, trained: TrainedAnswers) -> Callable[[int, tuple[int, ...]], float]:
    """Loads the reward model; returns a function (number of a prompt, response) -> score."""
    model = SharedModel(load_base(source.spec, str(source.device)))
    model.load_role(REWARD.role, source.run / REWARD.name / ADAPTER)

    def score(number: int, response: tuple[int, ...]) -> float:
        with model.role(REWARD.role):
            return score_of_response(model, trained.prompts[number], list(response))

    return score


def _record_row(prompt: list[int], greedy: list[int], logits: Tensor) -> dict[str, Any]:
    """A row of parity.json: a prompt, its greedy response, and the most probable tokens at each position."""
    top = logits.double().log_softmax(dim=-1).topk(min(TOP_TOKENS, logits.shape[1]), dim=-1)
    return {
        "prompt_ids": prompt,
        "greedy_ids": greedy,
        "counted": len(logits),
        "top_ids": top.indices.tolist(),
        "top_logprobs": [[round(value, 6) for value in row] for row in top.values.tolist()],
    }


def response_length(response: list[int], stop_ids: set[int]) -> int:
    """The number of tokens of a response up to its first stop token, which is included."""
    return next((i for i, token in enumerate(response, start=1) if token in stop_ids), len(response))
