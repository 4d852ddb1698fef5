"""The report on scores of ranked responses, and reliability: scikit-learn, SciPy, brute force and closed forms."""

import math
import random
import statistics
from itertools import combinations

import numpy
import pytest
import scipy.stats
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from lora_rlhf.stats.ordering import ordering_report, reliability_curve

Prompts = tuple[list[list[int]], list[torch.Tensor], list[list[float]]]


def prompts(count: int, seed: int, per_token: float = 0.05, temperature: float = 1.0) -> Prompts:
    """Scores that lean on length, and ranks that are drawn by the scores over a temperature."""
    rng = random.Random(seed)
    ranks, scores, lengths = [], [], []
    for _ in range(count):
        long = [float(rng.randint(5, 60)) for _ in range(rng.randint(2, 5))]
        means = [rng.gauss(0, 0.8) + per_token * length for length in long]
        # Gumbel noise: pairs win by the sigmoid
        noisy = [mean / temperature - math.log(rng.expovariate(1)) for mean in means]
        order = sorted(range(len(means)), key=lambda index: -noisy[index])
        ranks.append([1 + order.index(index) for index in range(len(means))])
        scores.append(torch.tensor(means))
        lengths.append(long)
    return ranks, scores, lengths


def pairs(data: Prompts) -> list[tuple[float, float, float]]:
    """(winner's score less the loser's, the same of lengths, the longer one's length) of every pair."""
    rows = []
    for ranks, scores, lengths in zip(*data, strict=True):
        for a, b in combinations(range(len(ranks)), 2):
            if ranks[a] != ranks[b]:
                a, b = sorted((a, b), key=lambda index: ranks[index])
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
    matched = [lead for lead, gap, long in rows if abs(gap) <= 0.1 * long]
    assert 5 < len(matched) < len(rows) / 2
    assert report["length_matched"]["n"] == len(matched)
    assert report["length_matched"]["rate"] == pytest.approx(sum(lead > 0 for lead in matched) / len(matched), abs=1e-9)
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
    filled = [row for row in report["reliability"] if row["n"]]
    assert [row["accuracy"] for row in filled] == pytest.approx(list(shares), abs=1e-6)
    assert [2 * row["confidence"] - 1 for row in filled] == pytest.approx(list(means), abs=1e-6)
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
    expected_all = scipy.stats.pearsonr(scores, lengths)
    assert report["length_correlation"] == pytest.approx(expected_all.statistic, abs=1e-6)
    # SciPy takes responses for independent: that is near the truth, as length differs most within a prompt.
    ends = expected_all.confidence_interval(0.95)
    interval = report["length_correlation_interval"]
    assert interval is not None
    assert (interval["low"], interval["high"]) == pytest.approx((ends.low, ends.high), abs=0.05)
    centred = [numpy.array(row) - numpy.mean(row) for row in drawn[2]]
    within = numpy.concatenate([(row.double() - row.double().mean()).numpy() for row in drawn[1]])
    expected = scipy.stats.pearsonr(within, numpy.concatenate(centred)).statistic
    assert report["length_correlation_within"] == pytest.approx(expected, abs=1e-6)
    shifted = [row.double() + 100.0 * index for index, row in enumerate(drawn[1])]
    levels = ordering_report(drawn[0], shifted, drawn[2])
    assert levels["length_correlation_within"] == pytest.approx(expected, abs=1e-6), "no levels of prompts"


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
    only_ties = ordering_report([[1, 1]], [torch.zeros(2)], [[1.0, 2.0]])
    assert only_ties == {"held_out_prompts": 1, "held_out_pairs": 0}
    single = ordering_report([[1, 2]], [torch.tensor([1.0, 0.0])], [[10.0, 20.0]])
    assert "length_matched" not in single and single["ece_interval"] is None
    assert single["length_correlation_interval"] is None


def test_lengths_that_do_not_vary_have_no_correlation() -> None:
    """0.1 is not exact, and three equal terms have a mean that differs from it."""
    report = ordering_report([[1, 2, 3]], [torch.tensor([1.0, 0.0, -1.0])], [[0.1] * 3])
    assert math.isnan(report["length_correlation"])


def test_reliability_on_worked_figures() -> None:
    probabilities = [0.51, 0.53, 0.97, 0.99, 1.0, 0.75]
    correct = [1, 0, 1, 1, 0, 1]
    bins, ece = reliability_curve(probabilities, correct)
    first, middle, last = bins[0], bins[5], bins[9]
    assert first == pytest.approx((0.5, 0.55, 0.52, 0.5, 2))
    assert middle == pytest.approx((0.75, 0.8, 0.75, 1.0, 1))
    assert last == pytest.approx((0.95, 1.0, (0.97 + 0.99 + 1.0) / 3, 2 / 3, 3))
    assert sum(b.n for b in bins) == 6 and math.isnan(bins[3].accuracy)
    assert ece == pytest.approx((2 * 0.02 + 1 * 0.25 + 3 * (2.96 / 3 - 2 / 3)) / 6, abs=1e-12)


def test_a_probability_on_an_edge_belongs_to_the_bin_that_begins_there() -> None:
    for index in range(10):
        bins = reliability_curve([round(0.5 + 0.05 * index, 2)], [1]).bins
        assert [b.n for b in bins] == [int(i == index) for i in range(10)]


def test_a_calibrated_predictor_has_no_error_and_an_overconfident_one_has_its_excess() -> None:
    assert reliability_curve([0.8] * 10, [1] * 8 + [0] * 2).ece == pytest.approx(0.0, abs=1e-12)
    assert reliability_curve([0.9] * 10, [1] * 6 + [0] * 4).ece == pytest.approx(0.3, abs=1e-12)


def test_probabilities_that_no_winner_can_have_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[0.5, 1\], got 0\.4"):
        reliability_curve([0.6, 0.4], [1, 0])
    with pytest.raises(ValueError, match="1 probabilities for 2"):
        reliability_curve([0.6], [1, 0])
