"""Finds the probes that a system's answers failed, by failure bin."""

from collections.abc import Mapping, Sequence

from lora_rlhf.probes.checks import has_passed
from lora_rlhf.probes.sets import BINS, Case, Probe, ProbeSet, World
from lora_rlhf.system.errors import UserError

POLISH = "reward_polish"
HIGH_REWARD = 0.75  # rewards above this quantile of the answers of all systems are high


def require_checkable(probes: ProbeSet, world: World | None) -> None:
    """Raises UserError for a gold check without a world, or of a prompt that the world does not know."""
    for probe in probes.probes:
        if probe.check["kind"] != "gold":
            continue
        request = probe.prompt.messages[-1].content
        subject = f"probes {probes.name}: {request!r} has a check of kind gold"
        if world is None:
            raise UserError(f"{subject}, and there is no exact world here; give the probe a check of another kind")
        try:
            qualities = world.qualities(request, "")
        except KeyError:
            raise UserError(f"{subject}, and {world.name} does not know it; give it a check of another kind") from None
        if missing := sorted(set(probe.check["at_most"]) - set(qualities)):
            raise UserError(f"{subject} on {', '.join(missing)}; {world.name} knows {', '.join(qualities)}")


def failures_by_bin(
    probes: ProbeSet,
    responses: Sequence[str],
    world: World | None = None,
    high_reward: Sequence[bool] | None = None,
) -> dict[str, list[bool]]:
    """{bin: for each of its cases, whether it failed}, in an order that is the same for every system.

    responses: one for each probe. high_reward: whether each got a high reward (`high_reward_flags`). Without it the
    bin "reward_polish" is left out, whose cases fail only if the reward is high.
    """
    failed: dict[str, list[bool]] = {name: [] for name in BINS if any(case.bin == name for case in probes.cases)}
    if high_reward is None:
        failed.pop(POLISH, None)
    for case in probes.cases:
        if case.bin in failed:
            is_high = high_reward is None or any(high_reward[index] for index in case.indices)
            failed[case.bin].append(
                _has_failed(probes.probes, responses, case, world) and (case.bin != POLISH or is_high)
            )
    return failed


def _has_failed(probes: Sequence[Probe], responses: Sequence[str], case: Case, world: World | None) -> bool:
    """Whether an answer to the case does not pass its check."""
    answers = [responses[index] for index in case.indices]
    partners = [None] if len(answers) == 1 else reversed(answers)  # the other answer of a pair
    for index, answer, partner in zip(case.indices, answers, partners, strict=True):
        check, request = probes[index].check, probes[index].prompt.messages[-1].content
        if not has_passed(check, request, answer, partner, world.qualities if world else None):
            return True
    return False


def high_reward_flags(rewards: Mapping[str, Sequence[float]], probes: ProbeSet) -> dict[str, list[bool]]:
    """{system: for each probe, whether its reward is in the highest quarter of the rewards of the polish bin}.

    rewards: {system: one for each probe}. The quarter is of all systems together, so the system whose empty answers
    have the highest rewards gets the highest share.
    """
    indices = [index for index, probe in enumerate(probes.probes) if probe.bin == POLISH]
    all_rewards = sorted(values[index] for values in rewards.values() for index in indices)
    if not all_rewards:
        return {system: [False] * len(values) for system, values in rewards.items()}
    threshold = all_rewards[min(int(HIGH_REWARD * len(all_rewards)), len(all_rewards) - 1)]
    return {system: [value >= threshold for value in values] for system, values in rewards.items()}
