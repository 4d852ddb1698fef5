"""One PPO iteration's experience: sampled responses, their scores, and what policy, reference and value say of them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_rlhf.algo.kl import k1, k3
from lora_rlhf.algo.rewards import apply_missing_eos
from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.batches import pad_left, pad_right
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.template import decode_response, pad_id, stop_ids
from lora_rlhf.model.decode_weights import merged
from lora_rlhf.model.forward import Sequences, in_micro_batches, response_logprobs, response_scores, response_values
from lora_rlhf.model.generate import GeneratedResponse, draw_seeds, generate_seeded
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages.decoding import PLAIN, Decoding
from lora_rlhf.stages.fitting import Pieces
from lora_rlhf.stages.learning import NotFinite
from lora_rlhf.system import workers
from lora_rlhf.system.errors import UserError

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]

SEQUENCES = ("prompt_ids", "prompt_mask", "response_ids", "response_mask")
JUDGED = ("finished", "scores", "old_logprobs", "ref_logprobs", "entropy")  # a rollout's, beside values


@dataclass(frozen=True)
class Rollout:
    """B responses and everything about them that the update needs, on the model's device.

    old_logprobs, ref_logprobs, values (B, R) are 0 where masked; values are None without a value role. scores (B,) are
    in units of the demonstrations' sd, and so are values, from which the reward model's offset is taken as it is from
    scores. finished (B,) is True where the response ended by itself.
    """

    sequences: Sequences
    finished: Tensor
    scores: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor | None
    entropy: Tensor
    value_offset: float

    @property
    def mask(self) -> Tensor:
        return self.sequences.response_mask

    def tensors(self) -> dict[str, Tensor]:
        """All of it on the CPU, for a checkpoint; without `value_offset`, which the reward stage tells."""
        values = {} if self.values is None else {"values": self.values}
        named = {name: getattr(self, name) for name in JUDGED} | vars(self.sequences) | values
        return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in named.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], value_offset: float, device: torch.device) -> "Rollout":
        """What `tensors` gave."""
        here = {name: tensor.to(device) for name, tensor in tensors.items()}
        sequences = Sequences(*(here[name] for name in SEQUENCES))
        return cls(sequences, **{n: here[n] for n in JUDGED}, values=here.get("values"), value_offset=value_offset)


@dataclass(frozen=True)
class Judge:
    """What a response is worth: the reward role's score, a verifiable reward's, or a weighted sum of both."""

    model_weight: float
    offset: float
    function: RewardFunction | None
    function_weight: float
    clip: float | None

    def scores(
        self, model: SharedModel, sequences: Sequences, texts: tuple[list[str], list[str]], pieces: Pieces
    ) -> Tensor:
        """(B,) float32. UserError when a reward function returns something else than one number per response."""
        total = torch.zeros(len(sequences), device=model.device)
        if self.model_weight:
            with model.role("reward"):
                raw = _in_pieces(lambda part: response_scores(model, part), sequences, pieces)
            total = total + self.model_weight * (raw - self.offset)
        if self.function is not None:
            total = total + self.function_weight * _checked(self.function(*texts), len(texts[1])).to(model.device)
        return total if self.clip is None else total.clamp(-self.clip, self.clip)


def _checked(returned: object, count: int) -> Tensor:
    """What a reward function returned, as (count,) float32 on the CPU."""
    try:
        values = torch.as_tensor(returned, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(returned).__name__
        raise UserError(f"the reward function returned no list of numbers, but a {kind} ({error})") from error
    if values.shape != (count,) or not bool(values.isfinite().all()):
        raise UserError(
            f"the reward function returned {tuple(values.shape)} values (all finite: {bool(values.isfinite().all())}), "
            f"expected one finite number for each of {count} responses"
        )
    return values


def act(
    config: PPOConfig,
    model: SharedModel,
    prompts: list[EncodedPrompt],
    generator: torch.Generator,
    pieces: Pieces,
    role: str = "policy",
    how: Decoding = PLAIN,
) -> list[GeneratedResponse]:
    """Samples `samples_per_prompt` responses of each prompt, side by side; each process samples for its share."""
    seeds = draw_seeds(generator, len(prompts), config.samples_per_prompt)
    own = workers.share(range(len(prompts)))

    def sample(size: int) -> list[list[GeneratedResponse]]:
        with model.role(role), merged(model) if how.merge else nullcontext():
            return generate_seeded(
                model,
                [prompts[place].prompt_ids for place in own],
                [seeds[place] for place in own],
                max_new_tokens=config.max_response_tokens,
                temperature=config.temperature,
                stop_ids=stop_ids(model.tokenizer),
                batch_size=size,
                engine=how.engine,
            )

    return [response for group in workers.gather(pieces.run(sample, "sampling")) for response in group]


@torch.no_grad()
def collect(
    config: PPOConfig,
    model: SharedModel,
    judge: Judge,
    prompts: list[EncodedPrompt],
    responses: list[GeneratedResponse],
    pieces: Pieces,
) -> Rollout:
    """Judges sampled responses: the score once a response, log-probs and values at every token.

    Each process judges its share; all get the whole. NotFinite for a score, log-prob or value that is not a number.
    """
    repeated = [prompt for prompt in prompts for _ in range(config.samples_per_prompt)]
    pad = pad_id(model.tokenizer)
    sequences = Sequences(
        *pad_left([prompt.prompt_ids for prompt in repeated], pad), *pad_right([r.ids for r in responses], pad)
    ).to(model.device)
    rows = workers.share(range(len(sequences)))
    own = sequences.index(rows)
    texts = (
        [repeated[row].prompt.messages[-1].content for row in rows],
        [decode_response(model.tokenizer, responses[row].ids).strip() for row in rows],
    )

    def logprobs(part: Sequences) -> Tensor:
        return torch.stack(response_logprobs(model, part, config.temperature), dim=-1)

    def reference(part: Sequences) -> Tensor:
        return response_logprobs(model, part, config.temperature, entropy=False)[0]

    found = {"score": judge.scores(model, own, texts, pieces)}
    with model.role("reference"):
        found["reference log-probability"] = _in_pieces(reference, own, pieces)
    with model.role("policy"):
        found["log-probability"] = _in_pieces(logprobs, own, pieces)
    if config.advantage == "gae":
        with model.role("value"):
            values = _in_pieces(lambda part: response_values(model, part), own, pieces)
        found["value"] = torch.where(own.response_mask, values - judge.offset, 0.0)
    whole = {name: workers.gather_rows(value) for name, value in found.items()}
    for name, value in whole.items():
        if not bool(value.isfinite().all()):
            raise NotFinite(name)
    # contiguous: PyTorch sums a view in another order than the copy of it that a checkpoint would bring back
    logprob, entropy = whole["log-probability"].movedim(-1, 0).contiguous()
    return Rollout(
        sequences,
        torch.tensor([response.finished for response in responses], device=model.device),
        whole["score"],
        logprob,
        whole["reference log-probability"],
        whole.get("value"),
        entropy,
        judge.offset,
    )


def _in_pieces(function: Callable[[Sequences], Tensor], sequences: Sequences, pieces: Pieces) -> Tensor:
    return pieces.run(lambda size: in_micro_batches(function, sequences, size), "scoring")


def describe(config: PPOConfig, rollout: Rollout) -> dict[str, float]:
    """A rollout's figures, under the names that they are recorded by. KL in nats per response."""
    mask, lengths = rollout.mask, rollout.mask.sum(dim=1).double()
    kl = torch.where(mask, k1(rollout.old_logprobs, rollout.ref_logprobs), 0.0)
    kl3 = torch.where(mask, k3(rollout.old_logprobs, rollout.ref_logprobs), 0.0)
    scores = apply_missing_eos(rollout.scores, rollout.finished, config.missing_eos_score)
    return {
        "rollout/score": float(scores.mean()),
        "rollout/score_sd": float(scores.std()) if len(scores) > 1 else 0.0,
        "rollout/kl": float(kl.sum(dim=1).mean()),
        "rollout/kl_k3": float(kl3.sum(dim=1).mean()),
        "rollout/length": float(lengths.mean()),
        "rollout/eos_rate": float(rollout.finished.double().mean()),
        "rollout/entropy": float(rollout.entropy.sum() / mask.sum()),
    }
