"""Computes the bytes of each stage at each of its memory points from a model's counts and passes.

One function computes one part of memory. This module reads no model, GPU or file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lora_rlhf.configs.catalogue import BY_NAME, DPO, Stage
from lora_rlhf.model.decode_static import PREFILL_TOKENS
from lora_rlhf.model.forward import SCORED_AT_ONCE
from lora_rlhf.model.skeleton import BLOCK, NESTED_BLOCK, Counts
from lora_rlhf.plan.cards import MIB, OWN_CONTEXT
from lora_rlhf.plan.dryrun import ChunkedLine, Line, Passes

FLOAT32 = 4
MOMENTS = 2  # AdamW's, per trained parameter
CODES = FLOAT32 * (16 + 256 + 1)  # tables of a quantized weight: 16 values, 256 values of its scales, and their offset
DRAWING = 24  # bytes for each vocabulary entry: logits, their softmax, and its cumulative sum twice in float64
IDS, MASK, FIGURES = 8, 1, 5 * FLOAT32  # bytes of a rollout's token: id, mask; log-probs, values, advantages, returns
TEMPORARY = (
    "activations",
    "hidden states",
    "logits",
    "kv cache",
    "read cache",
    "graph pool",
    "generation",
    "step",
)  # parts
CUDA_CONTEXT, COPIES = "cuda context", "copies on the CPU"  # names of parts

Parts = dict[str, float]  # bytes by part of memory
NamedParts = tuple[str, Parts]


@dataclass(frozen=True)
class Device:
    """What a kind of device takes beside tensors.

    context: bytes outside the allocator (CUDA's context and kernels). workspaces: how many cuBLAS has inside it.
    rounding: share of temporary memory that is lost to the allocator's blocks. has_copies: whether tensors "copied to
    the CPU" stay in the same memory. step_copies: how many times its adapter an optimizer step needs for itself.
    """

    context: int
    workspaces: int
    rounding: float
    has_copies: bool
    step_copies: float
    has_graphs: bool


CPU = Device(0, 0, 0.0, True, 0.0, False)
# Not measured on this project's machines: PyTorch's context with bitsandbytes' kernels is 300 to 600 MiB by card and
# driver; cuBLAS has a workspace for each handle and stream, here of the main thread, the backward pass's thread and the
# captures' stream; blocks are rounded to 512 bytes, and up to 1 MiB of a large one is left.
CUDA = Device(OWN_CONTEXT, 3, 0.03, False, 1.0, True)


@dataclass(frozen=True)
class Setting:
    """The sizes and options with which the stages run."""

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
        """The bytes of PyTorch's allocator."""
        return sum(size for part, size in self.parts.items() if part != CUDA_CONTEXT)

    @property
    def total(self) -> float:
        """The bytes that the card must have."""
        return sum(self.parts.values())


class TrainedRole(NamedTuple):
    """A role that a stage trains: the bytes of its adapter, its head's output, and the bytes of the head."""

    role: str
    adapter: float
    head_name: str
    head: ChunkedLine | Line


def memory_points(
    stage: Stage, counts: Counts, passes: Passes, setting: Setting, device: Device, workspace_bytes: int = 8 * MIB
) -> list[MemoryPoint]:
    """All memory points of a stage, in their order in time. workspace_bytes: the size of one of cuBLAS's workspaces."""
    points = _sampling_stage_points if stage.use == "sampled" else _data_stage_points
    libraries = device.workspaces * workspace_bytes
    return [
        MemoryPoint(name, {part: size for part, size in _add_device_parts(parts, device, libraries).items() if size})
        for name, parts in points(stage, counts, passes, setting, device)
    ]


def highest_point(points: list[MemoryPoint]) -> MemoryPoint:
    """The point with the most memory: the peak."""
    return max(points, key=lambda point: point.total)


# Parts that are always in memory


def quantized_base_bytes(counts: Counts) -> float:
    """NF4 with double quantization: half a byte per weight, 1 byte per block of 64, 4 bytes per block of 64 x 256."""
    total = 0
    for linear in counts.linears:
        if linear.quantized:
            weights = linear.out_features * linear.in_features
            blocks = -(-weights // BLOCK)
            total += (weights + 1) // 2 + blocks + FLOAT32 * -(-blocks // NESTED_BLOCK) + CODES
    return total


def unquantized_base_bytes(counts: Counts) -> float:
    """The bytes of embeddings, norms, biases, LM head, buffers and the frozen score head, which are not quantized."""
    return counts.kept + counts.buffers + FLOAT32 * counts.hidden_size


def role_bytes(counts: Counts, rank: int, head: bool = False) -> float:
    """The bytes of a role's float32 parameters: rank x (in + out) for each adapted layer, and H for a score head."""
    lora = sum(rank * (linear.out_features + linear.in_features) for linear in counts.linears if linear.adapted)
    return FLOAT32 * (lora + (counts.hidden_size if head else 0))


def moment_bytes(trained: float) -> float:
    """The bytes of AdamW's float32 moments for `trained` bytes of parameters."""
    return MOMENTS * trained


# Parts that are in memory for some time


def training_points(
    counts: Counts, passes: Passes, rows: int, checkpointing: bool, trained: TrainedRole
) -> Iterator[tuple[str, Parts, float]]:
    """Yields (name, parts, gradients) of a micro-batch's forward pass, of its head, and of its backward pass.

    gradients: the bytes of the role's gradients at this point of the first micro-batch, which creates them while the
    saved activations are freed.
    """
    planes = {name: plane.bytes_at(rows, counts.layers) for name, plane in passes.training[checkpointing].items()}
    yield "forward", {"activations": planes["forward"]}, 0.0
    yield trained.head_name, {"activations": planes["saved"], "logits": trained.head.bytes_at(rows)}, 0.0
    yield "backward", {"activations": planes["backward"]}, max(0.0, trained.adapter - planes["saved"])


def pair_points(
    counts: Counts, passes: Passes, rows: int, checkpointing: bool, trained: TrainedRole
) -> Iterator[tuple[str, Parts, float]]:
    """Yields (name, parts, gradients) of a step of `dpo`, whose layers read `rows` sequences of the batch at a time.

    Of several parts only the hidden states stay; the backward pass computes each part's layers again.
    """
    step = passes.pairs
    assert step is not None  # it was measured for this stage
    planes = {name: plane.bytes_at(rows, counts.layers) for name, plane in passes.training[checkpointing].items()}
    reading, has_parts = passes.scoring.bytes_at(rows, counts.layers), rows < step.rows
    saved = 0.0 if has_parts else planes["saved"]
    if has_parts:
        yield "forward", {"activations": reading, "hidden states": step.hidden}, 0.0
    else:
        yield "forward", {"activations": planes["forward"]}, 0.0
    yield "log-probs", {"activations": saved, "logits": step.head}, 0.0
    yield "reference", {"activations": saved + reading, "hidden states": step.kept + step.hidden}, 0.0
    yield "reference: log-probs", {"activations": saved, "logits": step.reference}, 0.0
    yield "backward: log-probs", {"activations": saved, "logits": step.backward}, 0.0
    again = max(planes["forward"], planes["backward"]) if has_parts else planes["backward"]
    gradients = trained.adapter if has_parts else max(0.0, trained.adapter - planes["saved"])
    yield "backward", {"activations": again, "hidden states": step.beside}, gradients


def scoring_points(counts: Counts, passes: Passes, rows: int) -> Iterator[NamedParts]:
    """Yields the points of a pass without gradients, and of the log-probabilities of its tokens."""
    yield "scoring", {"activations": passes.scoring.bytes_at(rows, counts.layers)}
    yield "scoring: log-probs", {"logits": passes.logprobs_scoring.bytes_at(rows)}


def merged_bytes(counts: Counts) -> float:
    """The bytes of merged weights in 16 bits, which a rollout has only where there is room for them."""
    return 2.0 * sum(linear.out_features * linear.in_features for linear in counts.linears if linear.adapted)


def generation_points(counts: Counts, passes: Passes, rows: int, device: Device) -> Iterator[NamedParts]:
    """Yields the points of the pass over the prompts, the last decoding step, and the drawing of its tokens.

    Where steps are captured, also that of prompts that are read for free slots, beside all slots and the graphs' pool.
    """
    sizes = {name: plane.bytes_at(rows, counts.layers) for name, plane in passes.decoding.items()}
    logits = rows * counts.vocab_size
    tokens = rows * passes.response * 2 * IDS
    yield "prefill", {"activations": sizes["prefill"], "generation": tokens + 6 * logits}
    cache = {"kv cache": sizes["cache"]}
    yield "decoding", {**cache, "activations": sizes["step"], "generation": tokens + 4 * logits}
    yield "drawing a token", {**cache, "generation": tokens + DRAWING * logits}
    if device.has_graphs and passes.is_static:
        read_rows = min(rows, max(1, PREFILL_TOKENS // passes.prompt))
        read_cache = sizes["cache"] * read_rows / rows * passes.prompt / (passes.prompt + passes.response)
        prefill = passes.decoding["prefill"].bytes_at(read_rows, counts.layers)
        yield (
            "refilling slots",
            {
                **cache,
                "graph pool": sizes["step"] + DRAWING * logits,
                "read cache": read_cache,
                "activations": prefill - read_cache,
                "generation": tokens + 6 * read_rows * counts.vocab_size,
            },
        )


def rollout_bytes(passes: Passes, responses: int) -> float:
    """The bytes of an iteration's ids, masks, log-probs, values, advantages and returns."""
    ids = (IDS + MASK) * (passes.prompt + passes.response)
    return responses * (ids + FIGURES * passes.response)


# The stages


def _data_stage_points(
    stage: Stage, counts: Counts, passes: Passes, setting: Setting, device: Device
) -> Iterator[NamedParts]:
    """Yields the points of a stage that trains one adapter on data, with its parents' adapters in memory."""
    trained = role_bytes(counts, setting.rank, head=stage.scores)
    parents = sum(role_bytes(counts, setting.rank, head=BY_NAME[parent].scores) for parent in stage.parents)
    permanent = _permanent_parts(counts, parents + trained, trained, setting, device)
    head: tuple[str, ChunkedLine | Line] = ("log-probs", passes.logprobs)
    if stage.scores:
        head = ("scores", passes.scores)
    yield from _learning_points(permanent, counts, passes, setting, device, [TrainedRole(stage.role, trained, *head)])


def _sampling_stage_points(
    stage: Stage, counts: Counts, passes: Passes, setting: Setting, device: Device
) -> Iterator[NamedParts]:
    """Yields the points of PPO, with a value role or without."""
    policy, value = role_bytes(counts, setting.rank), role_bytes(counts, setting.rank, head=True)
    roles = [TrainedRole(stage.role, policy, "log-probs", passes.logprobs)]
    if setting.value_role:
        roles.append(TrainedRole("value", value, "values", passes.values))
    trained = sum(role.adapter for role in roles)
    # the reference is the SFT adapter; with the reward adapter these are four adapters, or three without a value role
    permanent = _permanent_parts(counts, policy + value + trained, trained, setting, device)
    permanent[COPIES] = policy if device.has_copies else 0.0  # for the check that the reference does not change
    rollout_parts = {**permanent, "gradients": trained, "rollout": rollout_bytes(passes, setting.batch)}
    for name, parts in generation_points(counts, passes, setting.generation_batch, device):
        yield name, {**rollout_parts, **parts}
    for name, parts in scoring_points(counts, passes, min(SCORED_AT_ONCE * setting.micro_batch, setting.batch)):
        yield name, {**rollout_parts, **parts}
    permanent["rollout"] = rollout_parts["rollout"]
    yield from _learning_points(permanent, counts, passes, setting, device, roles)


def _permanent_parts(counts: Counts, adapters: float, trained: float, setting: Setting, device: Device) -> Parts:
    """The parts that are in memory during the whole stage. adapters, trained: bytes of all and of trained roles."""
    # a GPU multiplies by copies of one adapter in 16 bits
    adapters += role_bytes(counts, setting.rank) / 2 if device.has_graphs else 0.0
    return {
        "base, quantized": quantized_base_bytes(counts),
        "base, 16 or 32 bits": unquantized_base_bytes(counts),
        "adapters": adapters,
        "optimizer": moment_bytes(trained),
    }


def _learning_points(
    permanent: Parts, counts: Counts, passes: Passes, setting: Setting, device: Device, roles: list[TrainedRole]
) -> Iterator[NamedParts]:
    """Yields the points of each role's rehearsal, update and optimizer step, which has the gradients of all roles."""
    rows = min(setting.micro_batch, setting.minibatch)
    has_micro_batches = setting.minibatch > rows
    trained = sum(role.adapter for role in roles)
    reference_copy = permanent.get(COPIES, 0.0)
    for role in roles:
        points_of = pair_points if role.role == DPO.role else training_points
        points = list(points_of(counts, passes, rows, setting.checkpointing, role))
        copies = reference_copy + (1 + MOMENTS) * role.adapter if device.has_copies else 0.0
        for name, parts, gradients in points:
            yield (
                f"rehearsal of {role.role}: {name}",
                {**permanent, "gradients": gradients, COPIES: copies, **parts},
            )
        # PPO has copies of its roles until the check after the first iteration that they have changed
        copies = reference_copy + (trained if len(roles) > 1 or reference_copy else 0.0) if device.has_copies else 0.0
        for name, parts, gradients in points:
            gradient_bytes = trained - role.adapter + (role.adapter if has_micro_batches else gradients)
            yield (
                f"update of {role.role}: {name}",
                {**permanent, "gradients": gradient_bytes, COPIES: copies, **parts},
            )
        step = {"gradients": trained, COPIES: copies, "step": device.step_copies * role.adapter}
        yield f"optimizer step of {role.role}", {**permanent, **step}


def _add_device_parts(parts: Parts, device: Device, libraries: float) -> Parts:
    """The parts, and those of the device."""
    temporary = sum(parts.get(name, 0.0) for name in TEMPORARY)
    return {
        **parts,
        "libraries": libraries,
        "allocator rounding": device.rounding * temporary,
        CUDA_CONTEXT: device.context,
    }
