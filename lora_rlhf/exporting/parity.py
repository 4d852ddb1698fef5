"""How close an export is to the model that was trained: 4-bit base and adapter against the merged model, reloaded.

One model is in memory at a time. What the trained one says is kept on disk while the other is measured. Beside the
export stand the same figures of the other way to merge, and of the base without the adapter: an error means little
unless one knows how much there was to lose. Both compute in the dtype that the trained model computes in here, so that
what is measured is the weights.
"""

import functools
import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.configs.catalogue import REWARD
from lora_rlhf.data.template import stop_ids
from lora_rlhf.exporting.closeness import Closeness, closeness, same_beginning
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.prompts import ParityPrompts
from lora_rlhf.exporting.source import DTYPES, Source
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.comparing import fill, greedy_responses, response_logits, score_of_response
from lora_rlhf.model.dense import keep_dense
from lora_rlhf.model.merging import Mode
from lora_rlhf.model.shared import BASE, SharedModel
from lora_rlhf.model.tensor_files import Entry, read_index, write_tensors
from lora_rlhf.runs.folder import ADAPTER, find_stage, has_stage

log = logging.getLogger("lora_rlhf")

LEAST_KL = 1e-4  # nats per token: below, an export passes even where the adapter hardly does anything
TOP = 8  # tokens of each position that are recorded, for whoever checks the export later


@dataclass(frozen=True)
class Trained:
    """What the trained model says, without it.

    greedy: its responses, all of the same length. counted: how many tokens of each are the response; the rest comes
    after its end. logits: where they lie on disk. recorded: their most probable tokens, for parity.json. effect: how
    far the base without the adapter is.
    """

    prompts: list[list[int]]
    greedy: list[list[int]]
    counted: list[int]
    logits: Path
    recorded: list[dict[str, Any]]
    effect: dict[str, float]

    def response(self, number: int) -> list[int]:
        """A greedy response up to its end."""
        return self.greedy[number][: self.counted[number]]


def measure_trained(config: ExportConfig, source: Source, prompts: ParityPrompts, scratch: Path) -> Trained:
    """Loads the base in 4 bits with the adapter, measures both, and lets them go. Logits go to `scratch`."""
    model = SharedModel(load_base(source.spec, str(source.device)))
    keep_dense(model.causal)
    model.load_role(source.role, source.stage.adapter)
    prompt_ids = [encoded.prompt_ids for encoded in prompts.encoded]
    with model.role(source.role):
        greedy = greedy_responses(model, prompt_ids, config.parity_tokens)
    with model.role(BASE):
        base_greedy = greedy_responses(model, prompt_ids, config.parity_tokens)
    stops = set(stop_ids(source.tokenizer))
    counted = [response_end(response, stops) for response in greedy]
    total, recorded = Closeness(), []
    for number, prompt in enumerate(tqdm(prompt_ids, desc="trained model", unit="prompt", disable=None)):
        response = greedy[number][: counted[number]]
        with model.role(source.role):
            logits = response_logits(model, prompt, response)
        with model.role(BASE):
            total += closeness(logits, response_logits(model, prompt, response))
        write_tensors(scratch / f"{number}.safetensors", [Entry("logits", logits.dtype, tuple(logits.shape))], [logits])
        recorded.append(_record(prompt, greedy[number], logits))
    effect = total.figures() | _greedy_figures(greedy, base_greedy, counted)
    del model
    _collect()
    return Trained(prompt_ids, greedy, counted, scratch, recorded, effect)


def measure_export(
    config: ExportConfig, source: Source, trained: Trained, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of the export in `folder`, and of the other way to merge, which is made in its place in memory."""
    spec = BaseSpec(str(folder), "none", source.computed_in, trust_remote_code=source.base["trust_remote_code"])
    model = SharedModel(load_base(spec, str(source.device)))
    measured = [_measure(model, trained, "this export")]
    other: Mode = "original" if config.base == "rounded" else "rounded"
    fill(model, source.parts(), other, DTYPES[config.dtype])
    measured.append(_measure(model, trained, f"on the {other} base"))
    del model
    _collect()
    if _has_reward_model(source):
        differences = _reward_differences(source, trained, [responses for _, responses in measured])
        export, alternative = (figures | more for (figures, _), more in zip(measured, differences, strict=True))
        return export, alternative
    return measured[0][0], measured[1][0]


def too_far(config: ExportConfig, export: dict[str, float], effect: dict[str, float]) -> list[str]:
    """Why an export is refused; empty where it is not."""
    faults = []
    most = max(config.max_kl_share * effect["kl_per_token"], LEAST_KL)
    if export["kl_per_token"] > most:
        faults.append(
            f"KL per token from the trained model is {export['kl_per_token']:.3g} nats, the most is {most:.3g} "
            f"(max_kl_share {config.max_kl_share:g} of the adapter's own {effect['kl_per_token']:.3g})"
        )
    if export["top1_agreement"] < config.min_agreement:
        faults.append(
            f"the most probable token is the trained model's at {export['top1_agreement']:.2%} of positions, the "
            f"least is {config.min_agreement:.2%} (min_agreement)"
        )
    return faults


def _measure(model: SharedModel, trained: Trained, title: str) -> tuple[dict[str, float], list[list[int]]]:
    """A plain model's figures, and its greedy responses."""
    total = Closeness()
    with model.role(BASE):
        greedy = greedy_responses(model, trained.prompts, len(trained.greedy[0]))
        for number, prompt in enumerate(tqdm(trained.prompts, desc=title, unit="prompt", disable=None)):
            stored = read_index([trained.logits / f"{number}.safetensors"])["logits"]
            trained_logits = stored.rows(0, stored.shape[0])
            total += closeness(trained_logits, response_logits(model, prompt, trained.response(number)))
    return total.figures() | _greedy_figures(trained.greedy, greedy, trained.counted), greedy


def _greedy_figures(trained: list[list[int]], other: list[list[int]], counted: list[int]) -> dict[str, float]:
    """Share of responses that are the same to their end, and to their last token behind it; share of tokens before the
    first that differs.
    """
    same = [same_beginning(*pair) for pair in zip(trained, other, strict=True)]
    lengths = [len(response) for response in trained]
    return {
        "same_response": sum(num >= end for num, end in zip(same, counted, strict=True)) / len(same),
        "greedy_identical": sum(num == length for num, length in zip(same, lengths, strict=True)) / len(same),
        "greedy_agreement": sum(num / length for num, length in zip(same, lengths, strict=True)) / len(same),
    }


def _reward_differences(source: Source, trained: Trained, others: list[list[list[int]]]) -> list[dict[str, float]]:
    """{mean absolute difference of the reward model's score} between greedy responses, for each other model's.

    The reward model is loaded only where responses differ.
    """
    stops = set(stop_ids(source.tokenizer))
    ended = [[tuple(response[: response_end(response, stops)]) for response in responses] for responses in others]
    own = [tuple(trained.response(number)) for number in range(len(trained.prompts))]
    if all(responses == own for responses in ended):
        return [{"reward_difference": 0.0} for _ in others]
    score = functools.cache(_scorer(source, trained))
    means = []
    for responses in ended:
        pairs = enumerate(zip(own, responses, strict=True))
        differences = [0.0 if a == b else abs(score(number, a) - score(number, b)) for number, (a, b) in pairs]
        means.append({"reward_difference": sum(differences) / len(differences)})
    return means


def _has_reward_model(source: Source) -> bool:
    """Whether the run has one, on the same base."""
    if not has_stage(source.run, REWARD.name):
        return False
    base = find_stage(source.run / REWARD.name, REWARD.name).manifest["base"]
    return all(base[key] == source.base[key] for key in ("source_hash", "quantization"))


def _scorer(source: Source, trained: Trained) -> Callable[[int, tuple[int, ...]], float]:
    """The reward model's score of a response to the prompt of that number."""
    model = SharedModel(load_base(source.spec, str(source.device)))
    model.load_role(REWARD.role, source.run / REWARD.name / ADAPTER)

    def score(number: int, response: tuple[int, ...]) -> float:
        with model.role(REWARD.role):
            return score_of_response(model, trained.prompts[number], list(response))

    return score


def _record(prompt: list[int], greedy: list[int], logits: Tensor) -> dict[str, Any]:
    top = logits.double().log_softmax(dim=-1).topk(min(TOP, logits.shape[1]), dim=-1)
    return {
        "prompt_ids": prompt,
        "greedy_ids": greedy,
        "counted": len(logits),
        "top_ids": top.indices.tolist(),
        "top_logprobs": [[round(value, 6) for value in row] for row in top.values.tolist()],
    }


def response_end(response: list[int], stops: set[int]) -> int:
    """How many tokens a response has up to its first stop token, which counts."""
    return next((i for i, token in enumerate(response, start=1) if token in stops), len(response))


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
