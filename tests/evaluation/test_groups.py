"""Categories and languages of prompts, and failures that gather in some: against the exact test, and by hand."""

import random

import pytest
from scipy.stats import hypergeom

from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.evaluation.groups import find_cluster, group_by_label, prompt_categories, prompt_languages
from lora_rlhf.system.errors import UserError


def prompts(*values: object, column: str = "category") -> list[Prompt]:
    return [Prompt((Message("user", f"Q{i}"),), meta={column: value}) for i, value in enumerate(values)]


def test_the_usual_columns_are_found_and_one_may_be_named(caplog: pytest.LogCaptureFixture) -> None:
    assert prompt_categories(prompts("a", "b"), None) == ["a", "b"]
    assert prompt_categories(prompts("a", "b", column="use_case"), None) == ["a", "b"]
    assert prompt_categories(prompts("a", 3, column="topic"), "topic") == ["a", "3"]
    assert prompt_categories(prompts("a", "b", column="topic"), None) is None
    assert prompt_categories(prompts("a", None, " "), None) == ["a", "(none)", "(none)"]
    assert "2 prompts of 3 have no category" in caplog.text


def test_the_largest_category_comes_first_then_the_order_of_names() -> None:
    assert list(group_by_label(["b", "c", "a", "c", "b"]).items()) == [("b", [0, 4]), ("c", [1, 3]), ("a", [2])]


def test_columns_that_help_nobody_are_refused_where_asked_for() -> None:
    with pytest.raises(UserError, match="--category topic: the column is empty for all 2 prompts"):
        prompt_categories(prompts("", None, column="topic"), "topic")
    with pytest.raises(UserError, match="--category topic: the columns are: category"):
        prompt_categories(prompts("a", "b"), "topic")
    with pytest.raises(UserError, match="--category id: 60 different values, more than 50"):
        prompt_categories(prompts(*range(60), column="id"), "id")
    assert prompt_categories(prompts(*range(60)), None) is None


def test_a_language_is_its_column_or_the_script() -> None:
    assert prompt_languages(prompts("de", "en", column="lang")) == ["de", "en"]
    texts = ["Where is it?", "Где это?", "这是什么? ok", "123?"]
    assert prompt_languages([Prompt.of(text) for text in texts]) == ["LATIN", "CYRILLIC", "CJK", "(none)"]


def test_clusters_agree_with_the_exact_test() -> None:
    failed = [1.0] * 14 + [0.0] * 46 + [1.0] * 16 + [0.0] * 24
    labels = ["a"] * 60 + ["b"] * 40
    found = find_cluster(failed, labels)
    assert found is not None
    gaps = [abs(k / 60 - (30 - k) / 40) for k in range(31)]  # k of the 30 failures in the first group, by chance
    exact = sum(hypergeom(100, 30, 60).pmf(k) for k, gap in enumerate(gaps) if gap >= gaps[14] - 1e-9)
    assert found.p == pytest.approx(exact, abs=0.015), "2,000 shuffles have a standard error of 0.006"
    assert (found.worst, found.n, found.groups) == ("b", 40, 2)
    assert found.rate == pytest.approx(0.4) and found.overall == pytest.approx(0.3)


def test_scattered_failures_are_no_cluster_and_gathered_ones_are() -> None:
    rng = random.Random(0)
    labels = [rng.choice("abcd") for _ in range(400)]
    scattered, gathered = (
        find_cluster([float(rng.random() < 0.2) for _ in labels], labels),
        find_cluster([float(rng.random() < (0.5 if label == "c" else 0.1)) for label in labels], labels),
    )
    assert scattered is not None and gathered is not None
    assert scattered.p > 0.05 and gathered.p < 0.001 and gathered.worst == "c"


def test_small_groups_and_unknown_outcomes_are_left_out() -> None:
    assert find_cluster([1.0] * 20, ["a"] * 11 + ["b"] * 9) is None
    assert find_cluster([None] * 15 + [1.0] * 15, ["a"] * 15 + ["b"] * 15) is None
    found = find_cluster([1.0, 0.0] * 10 + [None] * 5 + [0.0] * 12, ["a"] * 20 + ["b"] * 17)
    assert found is not None and found.overall == pytest.approx(10 / 32)
