"""The step of `dpo` around the layers: a batch's hidden states and TRL's LM head, on tensors without storage."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from lora_rlhf.model.skeleton import Counts, Skeleton
from lora_rlhf.plan.meter import Meter
from lora_rlhf.plan.stand_ins import make_hidden_states
from lora_rlhf.plan.work import Work

OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")  # that TRL's DPOTrainer asks its head for
VOCABULARY_CHUNK = 32_768  # of its tiles; of tokens it takes 4,096 at a time


@dataclass(frozen=True)
class PairStep:
    """The bytes of a step beside those of its layers, for a batch of `rows` sequences, two for each pair.

    hidden: of the batch's hidden states, in float32. head, reference, backward: the most of the policy's head, the
    reference's beside what is kept of the policy's, and the heads' backward pass. kept: from the policy's head to its
    backward pass. beside: while the layers' backward pass runs. work: of both heads and the backward pass.
    """

    rows: int
    hidden: float
    head: float
    kept: float
    reference: float
    backward: float
    beside: float
    work: Work


def measure_pair_step(skeleton: Skeleton, counts: Counts, rows: int, prompt: int, response: int) -> PairStep:
    """Runs `RoleView`'s joining of hidden states and TRL's head without the layers, forward and backward."""
    beside: list[int] = []

    def read() -> Tensor:
        """The batch's hidden states (B, T, H), read in two parts."""
        parts = []
        for part_rows in (rows - rows // 2, rows // 2):
            states = make_hidden_states(skeleton, counts, part_rows, prompt + response)
            if states.requires_grad:
                states.register_hook(lambda _: beside.append(meter.live_bytes))
            parts.append(functional.pad(states.float(), (0, 0, 0, 0)))
        return torch.cat(parts)[torch.zeros(rows, dtype=torch.long)]

    with skeleton.mode, _as_on_device(skeleton.mode.on_gpu), Meter() as meter:
        with meter.record_phase("policy head"):
            logprobs = _read_head(skeleton, read(), response)
        kept = meter.live_bytes
        with meter.record_phase("reference"), torch.no_grad():
            reference = _read_head(skeleton, read(), response)
        with meter.record_phase("backward"):
            torch.autograd.backward((logprobs - reference).sum())
    operations = [one for phase in meter.operations.values() for one in phase]
    hidden = 4 * rows * (prompt + response) * counts.hidden_size
    peaks = meter.peaks
    work = Work.from_operations(1, operations, operations)
    return PairStep(
        rows, hidden, peaks["policy head"], kept, peaks["reference"], peaks["backward"], max(beside, default=0), work
    )


def _read_head(skeleton: Skeleton, hidden: Tensor, response: int) -> Tensor:
    """The log-probabilities of the responses' tokens by TRL's head: on a GPU of these alone, else of all tokens."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    states = hidden[:, :-1]
    if skeleton.mode.on_gpu:
        places = torch.zeros(len(hidden) * response, dtype=torch.long)
        states = states[places, places]
    else:
        states = states.reshape(-1, hidden.shape[-1])
    head, settings = skeleton.causal.get_output_embeddings(), skeleton.causal.config.get_text_config()
    softcap = getattr(settings, "final_logit_softcapping", None)
    ids = torch.zeros(len(states), dtype=torch.long)
    logprobs: Tensor = ChunkedLogProbFunction.apply(
        states, head.weight, head.bias, ids, 1.0, VOCABULARY_CHUNK, softcap, 1.0, OUTPUTS
    )[0]
    return logprobs


@contextmanager
def _as_on_device(on_gpu: bool) -> Iterator[None]:
    """The head takes the ways that it takes on a GPU or a CPU.

    On a GPU Triton's kernels read and write a tile in place, where the head elsewhere makes tensors of its size.
    """
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "is_autocast_enabled", lambda _kind: False))  # knows no meta device
        for name in ("_forward_tile", "_backward_tile") if on_gpu else ():
            stack.enter_context(patch(f"trl.kernels.chunked_logprob.{name}", lambda *_, **__: None))
        yield
