"""How close an export is to the model that was trained: 4-bit base and adapter against the merged model, reloaded.

One model is in memory at a time. What the trained one says is kept on disk while the other is measured. Beside the
export stand the same figures of the other way to merge, and of the base without the adapter: an error means little
unless one knows how much there was to lose. Both compute in the dtype that the trained model computes in here, so that
what is measured is the weights.
"""

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
from lora_rlhf.export.closeness import Closeness, closeness, same_beginning
from lora_rlhf.export.config import ExportConfig
from lora_rlhf.export.prompts import Chosen
from lora_rlhf.export.source import DTYPES, Source
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


def measure_trained(config: ExportConfig, source: Source, chosen: Chosen, scratch: Path) -> Trained:
    """Loads the base in 4 bits with the adapter, measures both, and lets them go. Logits go to `scratch`."""
    model = SharedModel(load_base(source.spec, str(source.device)))
    keep_dense(model.causal)
    model.load_role(source.role, source.stage.adapter)
    prompts = [encoded.prompt_ids for encoded in chosen.prompts]
    with model.role(source.role):
        greedy = greedy_responses(model, prompts, config.parity_tokens)
    with model.role(BASE):
        base_greedy = greedy_responses(model, prompts, config.parity_tokens)
    stops = set(stop_ids(source.tokenizer))
    counted = [_end(response, stops) for response in greedy]
    total, recorded = Closeness(), []
    for number, prompt in enumerate(tqdm(prompts, desc="trained model", unit="prompt", disable=None)):
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
    return Trained(prompts, greedy, counted, scratch, recorded, effect)


def measure_export(
    config: ExportConfig, source: Source, trained: Trained, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of the export in `folder`, and of the other way to merge, which is made in its place in memory."""
    name = str(source.compute_dtype).removeprefix("torch.")
    spec = BaseSpec(str(folder), "none", name, trust_remote_code=source.base["trust_remote_code"])
    model = SharedModel(load_base(spec, str(source.device)))
    found = [_measure(model, trained, "this export")]
    other: Mode = "original" if config.base == "rounded" else "rounded"
    fill(model, source.parts(), other, DTYPES[config.dtype])
    found.append(_measure(model, trained, f"on the {other} base"))
    del model
    _collect()
    if _has_reward_model(source):
        differences = _reward_differences(source, trained, [responses for _, responses in found])
        found = [(figures | more, responses) for (figures, responses), more in zip(found, differences, strict=True)]
    return found[0][0], found[1][0]


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


def _measure(model: SharedModel, trained: Trained, what: str) -> tuple[dict[str, float], list[list[int]]]:
    """A plain model's figures, and its greedy responses."""
    total = Closeness()
    with model.role(BASE):
        greedy = greedy_responses(model, trained.prompts, len(trained.greedy[0]))
        for number, prompt in enumerate(tqdm(trained.prompts, desc=what, unit="prompt", disable=None)):
            stored = read_index([trained.logits / f"{number}.safetensors"])["logits"]
            before = stored.rows(0, stored.shape[0])
            total += closeness(before, response_logits(model, prompt, trained.response(number)))
    return total.figures() | _greedy_figures(trained.greedy, greedy, trained.counted), greedy


def _greedy_figures(one: list[list[int]], other: list[list[int]], counted: list[int]) -> dict[str, float]:
    """Share of responses that are the same to their end, and to their last token behind it; share of tokens before the
    first that differs.
    """
    same = [same_beginning(a, b) for a, b in zip(one, other, strict=True)]
    return {
        "same_response": sum(place >= end for place, end in zip(same, counted, strict=True)) / len(same),
        "greedy_identical": sum(place == len(a) for place, a in zip(same, one, strict=True)) / len(same),
        "greedy_agreement": sum(place / len(a) for place, a in zip(same, one, strict=True)) / len(same),
    }


def _reward_differences(source: Source, trained: Trained, others: list[list[list[int]]]) -> list[dict[str, float]]:
    """{mean absolute difference of the reward model's score} between greedy responses, for each other model's.

    The reward model is loaded only where responses differ.
    """
    stops = set(stop_ids(source.tokenizer))
    cut = [[response[: _end(response, stops)] for response in responses] for responses in others]
    mine = [trained.response(number) for number in range(len(trained.prompts))]
    known: dict[tuple[int, tuple[int, ...]], float] = {}
    score = _scorer(source, trained) if any(responses != mine for responses in cut) else None
    found = []
    for responses in cut:
        differences = []
        for number, (one, other) in enumerate(zip(mine, responses, strict=True)):
            if one == other or score is None:
                differences.append(0.0)
                continue
            for response in (one, other):
                if (number, tuple(response)) not in known:
                    known[number, tuple(response)] = score(number, response)
            differences.append(abs(known[number, tuple(one)] - known[number, tuple(other)]))
        found.append({"reward_difference": sum(differences) / len(differences)})
    return found


def _has_reward_model(source: Source) -> bool:
    """Whether the run has one, on the same base."""
    if not has_stage(source.run, REWARD.name):
        return False
    base = find_stage(source.run / REWARD.name, REWARD.name).manifest["base"]
    return all(base[key] == source.base[key] for key in ("source_hash", "quantization"))


def _scorer(source: Source, trained: Trained) -> Callable[[int, list[int]], float]:
    model = SharedModel(load_base(source.spec, str(source.device)))
    model.load_role(REWARD.role, source.run / REWARD.name / ADAPTER)

    def score(number: int, response: list[int]) -> float:
        with model.role(REWARD.role):
            return score_of_response(model, trained.prompts[number], response)

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


def _end(response: list[int], stops: set[int]) -> int:
    """How many tokens a response has up to its first stop token, which counts."""
    return next((place + 1 for place, token in enumerate(response) if token in stops), len(response))


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
