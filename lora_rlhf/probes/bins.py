"""The failure bins of one system: which probes its answers failed, and each bin's share with its interval."""

from collections.abc import Mapping, Sequence

from lora_rlhf.probes.checks import passes
from lora_rlhf.probes.records import BINS, Case, Probe, ProbeSet, World
from lora_rlhf.stats.intervals import Interval, wilson
from lora_rlhf.system.errors import UserError

POLISH = "reward_polish"
HIGH_REWARD = 0.75  # a reward from this quantile upwards, over all systems' answers, is high


def require_checkable(probes: ProbeSet, world: World | None) -> None:
    """UserError, before anything is generated, for a probe that needs a world that is not there or does not know it."""
    for probe in probes.probes:
        if probe.check["kind"] != "gold":
            continue
        asked = probe.prompt.messages[-1].content
        place = f"probes {probes.name}: {asked!r} has a check of kind gold"
        if world is None:
            raise UserError(f"{place}, and there is no exact world here; give the probe a check of another kind")
        try:
            known = world.qualities(asked, "")
        except KeyError:
            raise UserError(f"{place}, and {world.name} does not know it; give it a check of another kind") from None
        if missing := sorted(set(probe.check["at_most"]) - set(known)):
            raise UserError(f"{place} on {', '.join(missing)}; {world.name} knows {', '.join(known)}")


def failures(
    probes: ProbeSet,
    responses: Sequence[str],
    world: World | None = None,
    high_reward: Sequence[bool] | None = None,
) -> dict[str, list[bool]]:
    """{bin: for each of its cases, whether it failed}, in an order that is the same for every system.

    responses: one a probe. high_reward: whether each got a high reward (`high_rewards`); without it the bin of polished
    answers that say little is left out, for it is about what the reward likes.
    """
    found: dict[str, list[bool]] = {name: [] for name in BINS if any(case.bin == name for case in probes.cases)}
    if high_reward is None:
        found.pop(POLISH, None)
    for case in probes.cases:
        if case.bin in found:
            liked = high_reward is None or any(high_reward[place] for place in case.places)
            found[case.bin].append(_fails(probes.probes, responses, case, world) and (case.bin != POLISH or liked))
    return found


def _fails(probes: Sequence[Probe], responses: Sequence[str], case: Case, world: World | None) -> bool:
    answers = [responses[place] for place in case.places]
    for place, answer, other in zip(case.places, answers, [*answers[1:], answers[0]], strict=True):
        probe = probes[place]
        asked = probe.prompt.messages[-1].content
        partner = other if len(answers) > 1 else None
        if not passes(probe.check, asked, answer, partner, world.qualities if world else None):
            return True
    return False


def shares(failed: Mapping[str, Sequence[bool]]) -> dict[str, Interval]:
    """{bin: the share of its cases that failed, with Wilson's interval}."""
    return {name: wilson(sum(cases), len(cases)) for name, cases in failed.items()}


def high_rewards(rewards: Mapping[str, Sequence[float]], probes: ProbeSet) -> dict[str, list[bool]]:
    """{system: for each probe, whether its answer's reward is among the highest quarter of the polish bin's}.

    rewards: {system: one a probe}. The quarter is taken over all systems together, so that a system whose empty answers
    please the reward more than another's has the higher share.
    """
    places = [place for place, probe in enumerate(probes.probes) if probe.bin == POLISH]
    pooled = sorted(values[place] for values in rewards.values() for place in places)
    if not pooled:
        return {system: [False] * len(values) for system, values in rewards.items()}
    least = pooled[min(int(HIGH_REWARD * len(pooled)), len(pooled) - 1)]
    return {system: [value >= least for value in values] for system, values in rewards.items()}
