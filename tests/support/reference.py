"""The definitions of the papers in plain Python floats: the answers that `lora_rlhf.algo` must give.

One unpadded sequence at a time, no tensor, no mask, and nothing imported from the code under test. Written from the
formulas, so where production is clever (a recursion, a shifted tensor, a log-sum-exp) this file spells the sum out.
"""

import itertools
import math
import statistics

Row = list[float]


def pad(rows: list[Row], width: int, fill: float = 0.0) -> list[Row]:
    """Rows of any length, filled up on the right."""
    return [row + [fill] * (width - len(row)) for row in rows]


def prefix_mask(rows: list[Row], width: int) -> list[list[bool]]:
    """True on the cells that `pad` did not invent."""
    return [[column < len(row) for column in range(width)] for row in rows]


# log-probabilities ----------------------------------------------------------------------------------------------------


def softmax(logits: Row) -> Row:
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


def logprob(logits: Row, token: int) -> float:
    return math.log(softmax(logits)[token])


def entropy(logits: Row) -> float:
    return -sum(p * math.log(p) for p in softmax(logits))


# KL -------------------------------------------------------------------------------------------------------------------


def k1(logprob: float, ref_logprob: float) -> float:
    """-log r with r = ref / policy."""
    return -math.log(math.exp(ref_logprob) / math.exp(logprob))


def k3(logprob: float, ref_logprob: float) -> float:
    """(r - 1) - log r with r = ref / policy."""
    r = math.exp(ref_logprob) / math.exp(logprob)
    return (r - 1) - math.log(r)


def adaptive_kl(coef: float, kl: float, target: float, num_episodes: int, horizon: float) -> float:
    """Ziegler et al.: e = clip((KL - target) / target, -0.2, 0.2); beta <- beta (1 + e n / horizon)."""
    error = min(max((kl - target) / target, -0.2), 0.2)
    return coef + coef * error * num_episodes / horizon


# rewards and advantages -----------------------------------------------------------------------------------------------


def token_rewards(score: float, kl: Row, kl_coef: float) -> Row:
    rewards = [-kl_coef * step for step in kl]
    rewards[-1] += score
    return rewards


def gae(rewards: Row, values: Row, gamma: float, lam: float) -> tuple[Row, Row]:
    """A_t = sum over l of (gamma lam)^l delta_{t+l}, with delta_t = r_t + gamma V_{t+1} - V_t; returns = A + V."""
    length = len(rewards)
    after = [*values[1:], 0.0]
    delta = [rewards[t] + gamma * after[t] - values[t] for t in range(length)]
    advantages = [sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, length)) for t in range(length)]
    return advantages, [advantages[t] + values[t] for t in range(length)]


def rloo(group: Row) -> Row:
    return [score - statistics.fmean(group[:i] + group[i + 1 :]) for i, score in enumerate(group)]


def grpo(group: Row, eps: float) -> Row:
    return [(score - statistics.fmean(group)) / (statistics.stdev(group) + eps) for score in group]


def dr_grpo(group: Row) -> Row:
    return [score - math.fsum(group) / len(group) for score in group]


def reinforce(batches: list[Row], decay: float) -> list[Row]:
    """Of each batch, its scores minus the moving mean of the batches before it; of the first, minus its own mean."""
    advantages, baseline = [], statistics.fmean(batches[0])
    for index, batch in enumerate(batches):
        advantages.append([score - baseline for score in batch])
        mean = statistics.fmean(batch)
        baseline = mean if index == 0 else decay * baseline + (1 - decay) * mean
    return advantages


# losses ---------------------------------------------------------------------------------------------------------------


def mean_loss(terms: list[Row], level: str, max_tokens: int) -> float:
    """The mean over all tokens; over the responses of their own means; or the sum over responses times max_tokens."""
    if level == "token":
        return statistics.fmean(itertools.chain(*terms))
    if level == "sequence":
        return statistics.fmean(statistics.fmean(row) for row in terms)
    return math.fsum(itertools.chain(*terms)) / (len(terms) * max_tokens)


def policy_terms(
    logprobs: Row, old_logprobs: Row, advantages: Row, clip_range: float, high: float | None = None
) -> list[tuple[float, bool, float]]:
    """Per token: -min(ratio A, clip(ratio) A); whether the clip binds; the k3 estimate of KL(old || new)."""
    terms = []
    for new, old, advantage in zip(logprobs, old_logprobs, advantages, strict=True):
        ratio = math.exp(new) / math.exp(old)
        upper = 1 + (clip_range if high is None else high)
        too_high = advantage > 0 and ratio > upper
        too_low = advantage < 0 and ratio < 1 - clip_range
        used = upper if too_high else 1 - clip_range if too_low else ratio
        terms.append((-used * advantage, too_high or too_low, k3(old, new)))
    return terms


def value_terms(values: Row, old_values: Row, returns: Row, clip_range: float) -> list[tuple[float, bool]]:
    """Per token: half the larger squared error, of the value or of the clipped value; whether it is the latter."""
    terms = []
    for value, old, target in zip(values, old_values, returns, strict=True):
        held = min(max(value, old - clip_range), old + clip_range)
        free_error, held_error = (value - target) ** 2, (held - target) ** 2
        terms.append((0.5 * max(free_error, held_error), held_error > free_error))
    return terms


def ranking_pairs(ranks: list[int]) -> list[tuple[int, int]]:
    """(winner, loser) of every pair that is not a tie; rank 1 is best."""
    pairs = [(a, b) if ranks[a] < ranks[b] else (b, a) for a, b in itertools.combinations(range(len(ranks)), 2)]
    return sorted((winner, loser) for winner, loser in pairs if ranks[winner] != ranks[loser])


def ranking_loss(scores: Row, ranks: list[int], margins: Row | None = None) -> tuple[float, int, int]:
    """-1/pairs sum of log sigmoid(r_w - r_l - margin); the number of pairs; how many have the winner on top."""
    pairs = ranking_pairs(ranks)
    leads = [scores[winner] - scores[loser] for winner, loser in pairs]
    losses = [math.log(1 + math.exp(-(lead - m))) for lead, m in zip(leads, margins or [0.0] * len(pairs), strict=True)]
    return sum(losses) / len(pairs), len(pairs), sum(lead > 0 for lead in leads)


def listwise_loss(scores: Row, ranks: list[int]) -> float:
    """Mean over responses with a loser of -log of being drawn from among themselves and all that are ranked below."""
    draws = []
    for score, rank in zip(scores, ranks, strict=True):
        losers = [other for other, other_rank in zip(scores, ranks, strict=True) if other_rank > rank]
        if losers:
            draws.append(-math.log(math.exp(score) / (math.exp(score) + sum(math.exp(other) for other in losers))))
    return statistics.fmean(draws)


# DPO's family and KTO -------------------------------------------------------------------------------------------------
# Of an answer: its log-probability under the policy less that under the reference, and its number of tokens.


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dpo_loss(chosen: float, rejected: float, beta: float) -> float:
    """-log sigmoid(beta (h_w - h_l)) (Rafailov et al., eq. 7)."""
    return -math.log(sigmoid(beta * (chosen - rejected)))


def hinge_loss(chosen: float, rejected: float, beta: float) -> float:
    """max(0, 1 - beta (h_w - h_l)) (SLiC, in DPO's terms)."""
    return max(0.0, 1 - beta * (chosen - rejected))


def ipo_loss(chosen: float, rejected: float, beta: float) -> float:
    """(h_w - h_l - 1 / (2 tau))^2 (Azar et al., eq. 17). TRL takes h as a mean over tokens, as the authors did."""
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def kto_loss(good: Row, bad: Row, mismatched: Row, beta: float, weights: tuple[float, float] = (1.0, 1.0)) -> float:
    """Mean of w (1 - sigmoid(beta (h - z))) of the good and w (1 - sigmoid(beta (z - h))) of the bad (KTO, eq. 7).

    z is the KL, estimated from answers that stand under another prompt, and never below 0.
    """
    z = max(0.0, sum(mismatched) / len(mismatched))
    terms = [weights[0] * (1 - sigmoid(beta * (h - z))) for h in good]
    terms += [weights[1] * (1 - sigmoid(beta * (z - h))) for h in bad]
    return sum(terms) / len(terms)
