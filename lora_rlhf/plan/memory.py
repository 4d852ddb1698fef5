"""The arithmetic of memory: what each stage holds at each of its heights, in bytes, from a model's counts and passes.

One function for each component; nothing here looks at a model, a GPU or a file.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lora_rlhf.model.skeleton import BLOCK, NESTED_BLOCK, Counts
from lora_rlhf.plan.dryrun import Head, Line, Passes

FLOAT32 = 4
MOMENTS = 2  # AdamW's, per trained parameter
CODES = FLOAT32 * (16 + 256 + 1)  # a quantized weight's own tables: its values, its scales', and their offset
DRAWING = 24  # bytes a token of the vocabulary: logits, their softmax, and its cumulative sum twice in float64
IDS, MASK, FIGURES = 8, 1, 5 * FLOAT32  # of a rollout's token: id, mask; log-probs, values, advantages, returns
MIB, GIB = 2**20, 2**30


Named = tuple[str, dict[str, float]]
Trained = tuple[str, float, str, Head | Line]  # role, bytes of its adapter, what its head makes, and bytes for that


@dataclass(frozen=True)
class Device:
    """What a kind of device takes beside tensors.

    context: bytes outside the allocator (CUDA's context and kernels). libraries: workspaces inside it (cuBLAS).
    rounding: share of passing memory that is lost to the allocator's blocks. copies: tensors "copied to the CPU" stay
    in the same memory. step_copies: how many times its adapter an optimizer step needs for itself.
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
class Height:
    """A moment at which memory may be at its most: its name, and bytes by component."""

    name: str
    parts: dict[str, float]

    @property
    def allocated(self) -> float:
        """What PyTorch's allocator holds."""
        return sum(size for part, size in self.parts.items() if part != "cuda context")

    @property
    def total(self) -> float:
        """All that the card must have."""
        return sum(self.parts.values())


def stage_heights(stage: str, counts: Counts, passes: Passes, setting: Setting, device: Device) -> list[Height]:
    """Every height of a stage: "sft", "reward" or "ppo"."""
    find = {"sft": _sft, "reward": _reward, "ppo": _ppo}[stage]
    return [
        Height(name, {part: size for part, size in _complete(parts, device).items() if size})
        for name, parts in find(counts, passes, setting, device)
    ]


def peak(heights: list[Height]) -> Height:
    """The highest."""
    return max(heights, key=lambda height: height.total)


# What is always there


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
    """Embeddings, norms, biases, LM head and what else stays as it is; the buffers, and the frozen score head."""
    return counts.kept + counts.buffers + FLOAT32 * counts.hidden_size


def adapter(counts: Counts, rank: int, head: bool = False) -> float:
    """One role's own parameters, float32: rank x (in + out) for each adapted layer; a score head has one for each H."""
    lora = sum(rank * (linear.out_features + linear.in_features) for linear in counts.linears if linear.adapted)
    return FLOAT32 * (lora + (counts.hidden_size if head else 0))


def optimizer(trained: float) -> float:
    """AdamW's float32 moments of the trained roles."""
    return MOMENTS * trained


# What passes


def training_heights(
    counts: Counts, passes: Passes, rows: int, checkpointing: bool, head: float, head_name: str, own: float
) -> Iterator[tuple[str, dict[str, float], float]]:
    """A micro-batch's forward, its head there and back, and its backward; with the gradients that its role has by then.

    That is for the first micro-batch, which makes them: while they grow, what the forward kept goes.
    """
    planes = {name: plane.at(rows, counts.layers) for name, plane in passes.training[checkpointing].items()}
    yield "forward", {"activations": planes["forward"]}, 0.0
    yield head_name, {"activations": planes["kept"], "logits": head}, 0.0
    yield "backward", {"activations": planes["backward"]}, max(0.0, own - planes["kept"])


def scoring_heights(counts: Counts, passes: Passes, rows: int) -> Iterator[Named]:
    """A pass without gradients, and the log-probabilities of its tokens."""
    yield "scoring", {"activations": passes.scoring.at(rows, counts.layers)}
    yield "scoring: log-probs", {"logits": passes.logprobs_scoring.at(rows)}


def generation_heights(counts: Counts, passes: Passes, rows: int) -> Iterator[Named]:
    """The prompts' one pass; the last step, when the cache is at its longest; and the draw of its tokens."""
    found = {name: plane.at(rows, counts.layers) for name, plane in passes.decoding.items()}
    logits = rows * counts.vocab_size
    tokens = rows * passes.response * 2 * IDS
    yield "prefill", {"activations": found["prefill"], "generation": tokens + 6 * logits}
    cache = {"kv cache": found["cache"]}
    yield "decoding", {**cache, "activations": found["step"], "generation": tokens + 4 * logits}
    yield "drawing a token", {**cache, "generation": tokens + DRAWING * logits}


def rollout_data(passes: Passes, responses: int) -> float:
    """An iteration's ids, masks, log-probs, values, advantages and returns."""
    ids = (IDS + MASK) * (passes.prompt + passes.response)
    return responses * (ids + FIGURES * passes.response)


# The stages


def _sft(counts: Counts, passes: Passes, setting: Setting, device: Device) -> Iterator[Named]:
    own = adapter(counts, setting.rank)
    always = _always(counts, own, own, device)
    yield from _learning(always, counts, passes, setting, device, [("sft", own, "log-probs", passes.logprobs_alone)])


def _reward(counts: Counts, passes: Passes, setting: Setting, device: Device) -> Iterator[Named]:
    own = adapter(counts, setting.rank, head=True)
    always = _always(counts, adapter(counts, setting.rank) + own, own, device)
    yield from _learning(always, counts, passes, setting, device, [("reward", own, "scores", passes.scores)])


def _ppo(counts: Counts, passes: Passes, setting: Setting, device: Device) -> Iterator[Named]:
    policy, value = adapter(counts, setting.rank), adapter(counts, setting.rank, head=True)
    roles: list[Trained] = [("policy", policy, "log-probs", passes.logprobs)]
    if setting.value_role:
        roles.append(("value", value, "values", passes.values))
    trained = sum(own for _, own, _, _ in roles)
    # the reference is the sft adapter itself; with the reward's that makes four adapters, three without a value role
    always = _always(counts, policy + value + trained, trained, device)
    always["copies on the CPU"] = policy if device.copies else 0.0  # to see at the end that the reference stayed
    learned = {**always, "gradients": trained, "rollout": rollout_data(passes, setting.batch)}
    for name, parts in generation_heights(counts, passes, setting.generation_batch):
        yield name, {**learned, **parts}
    for name, parts in scoring_heights(counts, passes, min(setting.micro_batch, setting.batch)):
        yield name, {**learned, **parts}
    always["rollout"] = learned["rollout"]
    yield from _learning(always, counts, passes, setting, device, roles)


def _always(counts: Counts, adapters: float, trained: float, device: Device) -> dict[str, float]:
    return {
        "base, quantized": base_quantized(counts),
        "base, 16 or 32 bits": base_kept(counts),
        "adapters": adapters,
        "optimizer": optimizer(trained),
    }


def _learning(
    always: dict[str, float],
    counts: Counts,
    passes: Passes,
    setting: Setting,
    device: Device,
    roles: list[Trained],
) -> Iterator[Named]:
    """The roles' rehearsals, and their steps, in which the gradients of all are there; on a CPU, with copies aside."""
    rows = min(setting.micro_batch, setting.minibatch)
    several = setting.minibatch > rows
    trained = sum(own for _, own, _, _ in roles)
    for role, own, head_name, head in roles:
        heights = list(training_heights(counts, passes, rows, setting.checkpointing, head.at(rows), head_name, own))
        copied = always.get("copies on the CPU", 0.0)
        aside = copied + (1 + MOMENTS) * own if device.copies else 0.0
        for name, parts, gradients in heights:
            yield (
                f"rehearsal of {role}: {name}",
                {**always, "gradients": gradients, "copies on the CPU": aside, **parts},
            )
        # PPO keeps its roles as they were until the first iteration has shown that they move
        aside = copied + (trained if len(roles) > 1 or copied else 0.0) if device.copies else 0.0
        others = trained - own
        for name, parts, gradients in heights:
            held = others + (own if several else gradients)
            yield f"update of {role}: {name}", {**always, "gradients": held, "copies on the CPU": aside, **parts}
        step = {"gradients": trained, "copies on the CPU": aside, "step": device.step_copies * own}
        yield f"optimizer step of {role}", {**always, **step}


def _complete(parts: dict[str, float], device: Device) -> dict[str, float]:
    """With what the device itself takes."""
    passing = sum(parts.get(name, 0.0) for name in ("activations", "logits", "kv cache", "generation", "step"))
    return {
        **parts,
        "libraries": device.libraries,
        "allocator rounding": device.rounding * passing,
        "cuda context": device.context,
    }
