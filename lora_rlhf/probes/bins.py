"""The failure bins of one system: which probes its answers failed."""

from collections.abc import Mapping, Sequence

from lora_rlhf.probes.checks import passes
from lora_rlhf.probes.sets import BINS, Case, Probe, ProbeSet, World
from lora_rlhf.system.errors import UserError

POLISH = "reward_polish"
HIGH_REWARD = 0.75  # a reward is high from this quantile upwards, over the answers of all systems


def require_checkable(probes: ProbeSet, world: World | None) -> None:
    """UserError, before anything is generated, for a gold check without a world or of a prompt unknown to it."""
    for probe in probes.probes:
        if probe.check["kind"] != "gold":
            continue
        request = probe.prompt.messages[-1].content
        subject = f"probes {probes.name}: {request!r} has a check of kind gold"
        if world is None:
            raise UserError(f"{subject}, and there is no exact world here; give the probe a check of another kind")
        try:
            known = world.qualities(request, "")
        except KeyError:
            raise UserError(f"{subject}, and {world.name} does not know it; give it a check of another kind") from None
        if missing := sorted(set(probe.check["at_most"]) - set(known)):
            raise UserError(f"{subject} on {', '.join(missing)}; {world.name} knows {', '.join(known)}")


def failures(
    probes: ProbeSet,
    responses: Sequence[str],
    world: World | None = None,
    high_reward: Sequence[bool] | None = None,
) -> dict[str, list[bool]]:
    """{bin: for each of its cases, whether it failed}, in an order that is the same for every system.

    responses: one for each probe. high_reward: whether each got a high reward (`high_rewards`); without it the bin of
    polished answers that say little is left out, because it is about what the reward likes.
    """
    failed: dict[str, list[bool]] = {name: [] for name in BINS if any(case.bin == name for case in probes.cases)}
    if high_reward is None:
        failed.pop(POLISH, None)
    for case in probes.cases:
        if case.bin in failed:
            liked = high_reward is None or any(high_reward[index] for index in case.indices)
            failed[case.bin].append(_fails(probes.probes, responses, case, world) and (case.bin != POLISH or liked))
    return failed


def _fails(probes: Sequence[Probe], responses: Sequence[str], case: Case, world: World | None) -> bool:
    answers = [responses[index] for index in case.indices]
    partners = [None] if len(answers) == 1 else reversed(answers)  # a pair's other answer
    for index, answer, partner in zip(case.indices, answers, partners, strict=True):
        check, request = probes[index].check, probes[index].prompt.messages[-1].content
        if not passes(check, request, answer, partner, world.qualities if world else None):
            return True
    return False


def high_rewards(rewards: Mapping[str, Sequence[float]], probes: ProbeSet) -> dict[str, list[bool]]:
    """{system: for each probe, whether its answer's reward is among the highest quarter of the polish bin's}.

    rewards: {system: one for each probe}. The quarter is taken over all systems together, so that the system whose
    empty answers please the reward most has the highest share.
    """
    indices = [index for index, probe in enumerate(probes.probes) if probe.bin == POLISH]
    pooled = sorted(values[index] for values in rewards.values() for index in indices)
    if not pooled:
        return {system: [False] * len(values) for system, values in rewards.items()}
    threshold = pooled[min(int(HIGH_REWARD * len(pooled)), len(pooled) - 1)]
    return {system: [value >= threshold for value in values] for system, values in rewards.items()}
