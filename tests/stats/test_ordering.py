"""The report on scores of ranked responses against scikit-learn, SciPy, brute force and closed forms."""

import math
import random
import statistics
from itertools import combinations
from typing import Any

import numpy
import pytest
import scipy.stats
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from lora_rlhf.stats.ordering import ordering_report
from lora_rlhf.stats.preference import independent_difference

Prompts = tuple[list[list[int]], list[torch.Tensor], list[list[float]]]


def prompts(count: int, seed: int, per_token: float = 0.05, temperature: float = 1.0) -> Prompts:
    """Scores that lean on length, and ranks that are drawn by the scores over a temperature."""
    rng = random.Random(seed)
    ranks, scores, lengths = [], [], []
    for _ in range(count):
        long = [float(rng.randint(5, 60)) for _ in range(rng.randint(2, 5))]
        own = [rng.gauss(0, 0.8) + per_token * one for one in long]
        # Gumbel noise: pairs win by the sigmoid
        drawn = [one / temperature - math.log(rng.expovariate(1)) for one in own]
        order = sorted(range(len(own)), key=lambda place: -drawn[place])
        ranks.append([1 + order.index(place) for place in range(len(own))])
        scores.append(torch.tensor(own))
        lengths.append(long)
    return ranks, scores, lengths


def pairs(found: Prompts) -> list[tuple[float, float, float]]:
    """(winner's score less the loser's, the same of lengths, the longer one's length) of every pair."""
    rows = []
    for ranks, scores, lengths in zip(*found, strict=True):
        for one, other in combinations(range(len(ranks)), 2):
            if ranks[one] != ranks[other]:
                a, b = (one, other) if ranks[one] < ranks[other] else (other, one)
                lead = float(scores[a].double() - scores[b].double())
                rows.append((lead, lengths[a] - lengths[b], max(lengths[a], lengths[b])))
    return rows


def test_every_rate_is_a_count_of_pairs() -> None:
    drawn = prompts(60, seed=1)
    rows, report = pairs(drawn), ordering_report(*drawn)
    assert report["held_out_pairs"] == len(rows) and report["held_out_prompts"] == 60
    leads = [lead for lead, _, _ in rows]
    assert report["accuracy"]["rate"] == pytest.approx(sum(lead > 0 for lead in leads) / len(rows), abs=1e-9)
    longer = [(gap > 0) + 0.5 * (gap == 0) for _, gap, _ in rows]
    assert report["longer_wins"]["rate"] == pytest.approx(statistics.fmean(longer), abs=1e-9)
    alike = [lead for lead, gap, long in rows if abs(gap) <= 0.1 * long]
    assert 5 < len(alike) < len(rows) / 2
    assert report["length_matched"]["n"] == len(alike)
    assert report["length_matched"]["rate"] == pytest.approx(sum(lead > 0 for lead in alike) / len(alike), abs=1e-9)
    for row in report["accuracy_by_margin"]:
        inside = [lead for lead in leads if row["from"] <= abs(lead) < row["to"]]
        assert row["n"] == len(inside)
        assert row["rate"] == pytest.approx(sum(lead > 0 for lead in inside) / len(inside), abs=1e-9)


def test_accuracy_of_pairs_is_scikit_learns_area_under_the_curve() -> None:
    """Of one winner among losers, the share of right pairs is that area; with equal scores as half."""
    scores = [0.3, 0.9, 0.3, -1.0, 2.0, 0.1]
    report = ordering_report([[1, 2, 2, 2, 2, 2]], [torch.tensor(scores)], [[1.0] * 6])
    assert report["accuracy"]["rate"] == pytest.approx(roc_auc_score([1, 0, 0, 0, 0, 0], scores), abs=1e-9)
    assert report["held_out_pairs"] == 5


def test_the_curve_is_scikit_learns_and_ece_is_its_distance() -> None:
    drawn = prompts(200, seed=2)
    leads = numpy.array([lead for lead, _, _ in pairs(drawn)])
    confidence, right = 1 / (1 + numpy.exp(-abs(leads))), leads > 0
    shares, means = calibration_curve(right, 2 * confidence - 1, n_bins=10)
    report = ordering_report(*drawn)
    held = [row for row in report["reliability"] if row["n"]]
    assert [row["accuracy"] for row in held] == pytest.approx(list(shares), abs=1e-6)
    assert [2 * row["confidence"] - 1 for row in held] == pytest.approx(list(means), abs=1e-6)
    sizes = numpy.histogram(2 * confidence - 1, numpy.linspace(0, 1, 11))[0]
    expected = (sizes[sizes > 0] * abs(shares - (means + 1) / 2)).sum() / sizes.sum()
    assert report["ece"] == pytest.approx(expected, abs=1e-6)


def test_the_interval_of_ece_knows_noise_from_error() -> None:
    """Of calibrated scores ECE is above 0 by chance, and its interval reaches (nearly) to it; of loud ones it stays."""
    calibrated = ordering_report(*prompts(400, seed=3))
    assert calibrated["ece"] > 0.005 and calibrated["ece_interval"]["low"] < 0.01
    loud = ordering_report(*prompts(400, seed=3, temperature=5.0))
    assert 0.1 < loud["ece_interval"]["low"] < loud["ece"] < loud["ece_interval"]["high"] < 0.35


def test_correlations_are_scipys() -> None:
    drawn = prompts(80, seed=4)
    report = ordering_report(*drawn)
    scores, lengths = torch.cat(drawn[1]).double().numpy(), numpy.concatenate(drawn[2])
    theirs = scipy.stats.pearsonr(scores, lengths)
    assert report["length_correlation"] == pytest.approx(theirs.statistic, abs=1e-6)
    ends = theirs.confidence_interval(0.95)  # of independent responses: near, as length differs most within a prompt
    found = report["length_correlation_interval"]
    assert (found["low"], found["high"]) == pytest.approx((ends.low, ends.high), abs=0.05)
    centred = [numpy.array(own) - numpy.mean(own) for own in drawn[2]]
    within = numpy.concatenate([own.double().numpy() - own.double().numpy().mean() for own in drawn[1]])
    expected = scipy.stats.pearsonr(within, numpy.concatenate(centred)).statistic
    assert report["length_correlation_within"] == pytest.approx(expected, abs=1e-6)
    shifted = [own.double() + 100.0 * place for place, own in enumerate(drawn[1])]
    other = ordering_report(drawn[0], shifted, drawn[2])
    assert other["length_correlation_within"] == pytest.approx(expected, abs=1e-6), "prompts' own levels do not count"


def test_a_model_of_length_alone_is_no_better_than_the_longer_one_and_blind_at_equal_length() -> None:
    ranks, scores, lengths = [], [], []
    for number in range(200):
        long = [20.0, 21.0] if number % 2 else [10.0, 40.0]
        better = [1, 2] if number % 4 == 1 else [2, 1]
        ranks.append(better if number % 2 else [2, 1])  # the longer one is better but where both are about as long
        scores.append(torch.tensor(long) / 10)
        lengths.append(long)
    report = ordering_report(ranks, scores, lengths)
    assert report["accuracy"] == report["longer_wins"]
    assert report["accuracy"]["low"] > 0.6
    assert report["length_matched"]["low"] < 0.5 < report["length_matched"]["high"]
    assert report["length_correlation"] == pytest.approx(1.0)


def test_what_is_not_there_is_left_out() -> None:
    none: dict[str, Any] = ordering_report([[1, 1]], [torch.zeros(2)], [[1.0, 2.0]])
    assert none == {"held_out_prompts": 1, "held_out_pairs": 0}
    one = ordering_report([[1, 2]], [torch.tensor([1.0, 0.0])], [[10.0, 20.0]])
    assert "length_matched" not in one and one["ece_interval"] is None
    assert one["length_correlation_interval"] is None


def test_the_difference_of_two_shares_is_newcombes() -> None:
    """Newcombe 1998 (Interval estimation for the difference), Table II, method 10: 56/70 - 48/80 and 10/10 - 0/20."""
    for (a, m), (b, n), ends in [((56, 70), (48, 80), (0.0524, 0.3339)), ((10, 10), (0, 20), (0.6791, 1.0))]:
        sides = []
        for x, of in ((a, m), (b, n)):
            interval = scipy.stats.binomtest(x, of).proportion_ci(0.95, "wilson")
            sides.append((x / of, interval.low, interval.high))
        found = independent_difference(*sides)
        assert found[0] == pytest.approx(a / m - b / n, abs=1e-12)
        assert found[1:] == pytest.approx(ends, abs=5e-5)
