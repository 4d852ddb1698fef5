"""The memory of each stage at each of its memory points, in bytes, computed from a model's counts and passes.

One function for each part of memory. Nothing here reads a model, a GPU or a file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lora_rlhf.configs.catalogue import BY_NAME, Stage
from lora_rlhf.model.skeleton import BLOCK, NESTED_BLOCK, Counts
from lora_rlhf.plan.dryrun import ChunkedLine, Line, Passes

FLOAT32 = 4
MOMENTS = 2  # AdamW's, per trained parameter
CODES = FLOAT32 * (16 + 256 + 1)  # a quantized weight's own tables: its values, its scales', and their offset
DRAWING = 24  # bytes a token of the vocabulary: logits, their softmax, and its cumulative sum twice in float64
IDS, MASK, FIGURES = 8, 1, 5 * FLOAT32  # of a rollout's token: id, mask; log-probs, values, advantages, returns
MIB, GIB = 2**20, 2**30
CUDA_CONTEXT, COPIES = "cuda context", "copies on the CPU"  # names of parts

Parts = dict[str, float]  # bytes by part of memory
NamedParts = tuple[str, Parts]


@dataclass(frozen=True)
class Device:
    """What a kind of device takes beside tensors.

    context: bytes outside the allocator (CUDA's context and kernels). libraries: workspaces inside it (cuBLAS).
    rounding: share of temporary memory that is lost to the allocator's blocks. copies: whether tensors "copied to the
    CPU" stay in the same memory. step_copies: how many times its adapter an optimizer step needs for itself.
    """

    context: int
    libraries: int
    rounding: float
    copies: bool
    step_copies: float


CPU = Device(0, 0, 0.0, True, 0.0)
# Not measured on this project's machines: PyTorch's context with bitsandbytes' kernels is 300 to 600 MiB by card and
# driver; cuBLAS takes 8 MiB, 32 on Hopper; blocks are rounded to 512 bytes, and up to 1 MiB of a large one is left.
CUDA = Device(512 * MIB, 32 * MIB, 0.03, False, 1.0)


@dataclass(frozen=True)
class Setting:
    """How the stages are to be run."""

    micro_batch: int
    generation_batch: int
    checkpointing: bool
    rank: int
    value_role: bool
    minibatch: int = 32
    batch: int = 64
    samples_per_prompt: int = 1


@dataclass(frozen=True)
class MemoryPoint:
    """A moment of a stage at which memory may be highest: its name, and the bytes of each part."""

    name: str
    parts: Parts

    @property
    def allocated(self) -> float:
        """Bytes that PyTorch's allocator holds."""
        return sum(size for part, size in self.parts.items() if part != CUDA_CONTEXT)

    @property
    def total(self) -> float:
        """Bytes that the card must have."""
        return sum(self.parts.values())


class TrainedRole(NamedTuple):
    """A role that a stage trains: the bytes of its adapter, what its head computes, and the bytes that this takes."""

    role: str
    adapter: float
    head_name: str
    head: ChunkedLine | Line


def memory_points(stage: Stage, counts: Counts, passes: Passes, setting: Setting, device: Device) -> list[MemoryPoint]:
    """All memory points of a stage, in the order in which it comes to them."""
    points = _with_sampling if stage.use == "sampled" else _without_sampling
    return [
        MemoryPoint(name, {part: size for part, size in _with_device(parts, device).items() if size})
        for name, parts in points(stage, counts, passes, setting, device)
    ]


def highest(points: list[MemoryPoint]) -> MemoryPoint:
    """The point with the most memory: the peak."""
    return max(points, key=lambda point: point.total)


# What is always in memory


def base_quantized(counts: Counts) -> float:
    """NF4 with double quantization: half a byte a weight, a byte a block of 64, four bytes a block of 64 x 256."""
    total = 0
    for linear in counts.linears:
        if linear.quantized:
            weights = linear.out_features * linear.in_features
            blocks = -(-weights // BLOCK)
            total += (weights + 1) // 2 + blocks + FLOAT32 * -(-blocks // NESTED_BLOCK) + CODES
    return total


def base_kept(counts: Counts) -> float:
    """What is not quantized: embeddings, norms, biases, LM head, buffers and the frozen score head."""
    return counts.kept + counts.buffers + FLOAT32 * counts.hidden_size


def adapter(counts: Counts, rank: int, head: bool = False) -> float:
    """One role's parameters in float32: rank x (in + out) for each adapted layer; a score head has H more."""
    lora = sum(rank * (linear.out_features + linear.in_features) for linear in counts.linears if linear.adapted)
    return FLOAT32 * (lora + (counts.hidden_size if head else 0))


def optimizer(trained: float) -> float:
    """AdamW's float32 moments of the trained roles."""
    return MOMENTS * trained


# What is in memory for a while


def training_points(
    counts: Counts, passes: Passes, rows: int, checkpointing: bool, trained: TrainedRole
) -> Iterator[tuple[str, Parts, float]]:
    """(name, parts, gradients) of a micro-batch's forward, of its head there and back, and of its backward.

    gradients: bytes of the role's gradients by then, in the first micro-batch, which creates them. While they grow,
    the activations that the forward kept are freed.
    """
    planes = {name: plane.at(rows, counts.layers) for name, plane in passes.training[checkpointing].items()}
    yield "forward", {"activations": planes["forward"]}, 0.0
    yield trained.head_name, {"activations": planes["kept"], "logits": trained.head.at(rows)}, 0.0
    yield "backward", {"activations": planes["backward"]}, max(0.0, trained.adapter - planes["kept"])


def scoring_points(counts: Counts, passes: Passes, rows: int) -> Iterator[NamedParts]:
    """A pass without gradients, and the log-probabilities of its tokens."""
    yield "scoring", {"activations": passes.scoring.at(rows, counts.layers)}
    yield "scoring: log-probs", {"logits": passes.logprobs_scoring.at(rows)}


def generation_points(counts: Counts, passes: Passes, rows: int) -> Iterator[NamedParts]:
    """The pass over the prompts, the last step, at which the cache is longest, and the draw of its tokens."""
    sizes = {name: plane.at(rows, counts.layers) for name, plane in passes.decoding.items()}
    logits = rows * counts.vocab_size
    tokens = rows * passes.response * 2 * IDS
    yield "prefill", {"activations": sizes["prefill"], "generation": tokens + 6 * logits}
    cache = {"kv cache": sizes["cache"]}
    yield "decoding", {**cache, "activations": sizes["step"], "generation": tokens + 4 * logits}
    yield "drawing a token", {**cache, "generation": tokens + DRAWING * logits}


def rollout_data(passes: Passes, responses: int) -> float:
    """An iteration's ids, masks, log-probs, values, advantages and returns."""
    ids = (IDS + MASK) * (passes.prompt + passes.response)
    return responses * (ids + FIGURES * passes.response)


# The stages


def _without_sampling(
    stage: Stage, counts: Counts, passes: Passes, setting: Setting, device: Device
) -> Iterator[NamedParts]:
    """A stage that trains one adapter on data, with its parents' adapters in memory."""
    trained = adapter(counts, setting.rank, head=stage.scores)
    parents = sum(adapter(counts, setting.rank, head=BY_NAME[parent].scores) for parent in stage.parents)
    always = _always(counts, parents + trained, trained)
    head: tuple[str, ChunkedLine | Line] = ("log-probs", passes.logprobs_alone)
    if stage.scores:
        head = ("scores", passes.scores)
    yield from _learning(always, counts, passes, setting, device, [TrainedRole(stage.role, trained, *head)])


def _with_sampling(
    stage: Stage, counts: Counts, passes: Passes, setting: Setting, device: Device
) -> Iterator[NamedParts]:
    """PPO, with a value role or without."""
    policy, value = adapter(counts, setting.rank), adapter(counts, setting.rank, head=True)
    roles = [TrainedRole(stage.role, policy, "log-probs", passes.logprobs)]
    if setting.value_role:
        roles.append(TrainedRole("value", value, "values", passes.values))
    trained = sum(role.adapter for role in roles)
    # the reference is the sft adapter itself; with the reward's that makes four adapters, three without a value role
    always = _always(counts, policy + value + trained, trained)
    always[COPIES] = policy if device.copies else 0.0  # to see at the end that the reference has not changed
    learned = {**always, "gradients": trained, "rollout": rollout_data(passes, setting.batch)}
    for name, parts in generation_points(counts, passes, setting.generation_batch):
        yield name, {**learned, **parts}
    for name, parts in scoring_points(counts, passes, min(setting.micro_batch, setting.batch)):
        yield name, {**learned, **parts}
    always["rollout"] = learned["rollout"]
    yield from _learning(always, counts, passes, setting, device, roles)


def _always(counts: Counts, adapters: float, trained: float) -> Parts:
    return {
        "base, quantized": base_quantized(counts),
        "base, 16 or 32 bits": base_kept(counts),
        "adapters": adapters,
        "optimizer": optimizer(trained),
    }


def _learning(
    always: Parts, counts: Counts, passes: Passes, setting: Setting, device: Device, roles: list[TrainedRole]
) -> Iterator[NamedParts]:
    """Each role's rehearsal, its updates and its optimizer step, in which the gradients of all roles are there."""
    rows = min(setting.micro_batch, setting.minibatch)
    has_micro_batches = setting.minibatch > rows
    trained = sum(role.adapter for role in roles)
    reference_copy = always.get(COPIES, 0.0)
    for role in roles:
        points = list(training_points(counts, passes, rows, setting.checkpointing, role))
        copies = reference_copy + (1 + MOMENTS) * role.adapter if device.copies else 0.0
        for name, parts, gradients in points:
            yield f"rehearsal of {role.role}: {name}", {**always, "gradients": gradients, COPIES: copies, **parts}
        # PPO keeps its roles as they were until the first iteration has shown that they move
        copies = reference_copy + (trained if len(roles) > 1 or reference_copy else 0.0) if device.copies else 0.0
        for name, parts, gradients in points:
            present = trained - role.adapter + (role.adapter if has_micro_batches else gradients)
            yield f"update of {role.role}: {name}", {**always, "gradients": present, COPIES: copies, **parts}
        step = {"gradients": trained, COPIES: copies, "step": device.step_copies * role.adapter}
        yield f"optimizer step of {role.role}", {**always, **step}


def _with_device(parts: Parts, device: Device) -> Parts:
    """The parts, and what the device itself takes."""
    temporary = sum(parts.get(name, 0.0) for name in ("activations", "logits", "kv cache", "generation", "step"))
    return {
        **parts,
        "libraries": device.libraries,
        "allocator rounding": device.rounding * temporary,
        CUDA_CONTEXT: device.context,
    }
