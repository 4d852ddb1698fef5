"""Groups of prompts, by category and by language, and a test for groups with more failures."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from lora_rlhf.data.refusals import pluralize
from lora_rlhf.data.schema import Prompt
from lora_rlhf.evaluation.report_model import Cluster
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

CATEGORY_COLUMNS = ("category", "use_case")
LANGUAGE_COLUMNS = ("language", "lang")
NO_LABEL = "(none)"
FEWEST_OF_GROUP = 10  # prompts: with fewer, an interval says nothing
MOST_GROUPS = 50
NUM_SHUFFLES = 2000
SHUFFLING_SEED = 0


def prompt_categories(prompts: Sequence[Prompt], column: str | None) -> list[str] | None:
    """Each prompt's category, "(none)" without one; None if no column was named and no usual one has values.

    Raises UserError for a named column that does not exist, is empty for all prompts, or has more than 50 values.
    """
    labels = _column_labels(prompts, [column] if column else CATEGORY_COLUMNS)
    if labels is None:
        if column is None:
            return None
        names = sorted({name for prompt in prompts for name in prompt.meta})
        fault = f"the columns are: {', '.join(names)}" if names else "the prompts have no columns of their own"
        if column in names:
            fault = f"the column is empty for all {pluralize(len(prompts), 'prompt')}"
        raise UserError(f"--category {column}: {fault}")
    if len(set(labels)) > MOST_GROUPS:
        if column is None:
            return None
        raise UserError(
            f"--category {column}: {len(set(labels))} different values, more than {MOST_GROUPS} are no help"
        )
    if num_empty := labels.count(NO_LABEL):
        log.warning(
            "%s of %d have no category and are reported as %s",
            pluralize(num_empty, "prompt"),
            len(labels),
            NO_LABEL,
        )
    return labels


def prompt_languages(prompts: Sequence[Prompt]) -> list[str]:
    """Each prompt's language, from its column language or lang; without these, its script (LATIN, CJK)."""
    return _column_labels(prompts, LANGUAGE_COLUMNS) or [
        _main_script(prompt.messages[-1].content) for prompt in prompts
    ]


def group_by_label(labels: Sequence[str]) -> dict[str, list[int]]:
    """{label: the indices of its prompts}, the largest group first, then by name."""
    indices: dict[str, list[int]] = {}
    for index, name in enumerate(labels):
        indices.setdefault(name, []).append(index)
    return dict(sorted(indices.items(), key=lambda item: (-len(item[1]), item[0])))


def find_cluster(failed: Sequence[float | None], labels: Sequence[str]) -> Cluster | None:
    """Tests whether failures are more frequent in some groups; None for fewer than two groups.

    failed: 1 if the prompt failed, 0 if not, None if unknown. p: the share of 2,000 random relabelings with an equal or
    larger chi-squared statistic over groups and failures (a permutation test). Groups of under ten prompts are left
    out. `worst` has the highest rate of failures.
    """
    groups = {label: [i for i in rows if failed[i] is not None] for label, rows in group_by_label(labels).items()}
    groups = {label: rows for label, rows in groups.items() if len(rows) >= FEWEST_OF_GROUP}
    if len(groups) < 2:
        return None
    values = torch.tensor([float(failed[i] or 0.0) for rows in groups.values() for i in rows], dtype=torch.float64)
    sizes = torch.tensor([len(rows) for rows in groups.values()])
    membership = torch.repeat_interleave(torch.arange(len(groups)), sizes)
    generator = torch.Generator().manual_seed(SHUFFLING_SEED)
    observed = _group_spread(values, membership)
    num_as_large = sum(
        _group_spread(values[torch.randperm(len(values), generator=generator)], membership) >= observed - 1e-12
        for _ in range(NUM_SHUFFLES)
    )
    rates = {label: sum(failed[i] or 0.0 for i in rows) / len(rows) for label, rows in groups.items()}
    worst = max(rates, key=lambda label: rates[label])
    return Cluster(
        p=(num_as_large + 1) / (NUM_SHUFFLES + 1),
        worst=worst,
        rate=rates[worst],
        n=len(groups[worst]),
        overall=values.mean().item(),
        groups=len(groups),
    )


def _group_spread(values: torch.Tensor, membership: torch.Tensor) -> float:
    """The part of the chi-squared statistic that depends on labels: squared distances of group means, by size."""
    sizes = torch.bincount(membership).double()
    means = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, membership, values) / sizes
    return (sizes * (means - values.mean()) ** 2).sum().item()


def _column_labels(prompts: Sequence[Prompt], names: Sequence[str]) -> list[str] | None:
    """The labels of the first of these columns with any value; None without one."""
    for name in names:
        labels = [_label_text(prompt.meta.get(name)) for prompt in prompts]
        if any(label != NO_LABEL for label in labels):
            return labels
    return None


def _label_text(value: Any) -> str:
    return str(value).strip() or NO_LABEL if isinstance(value, str | int | bool) else NO_LABEL


def _main_script(text: str) -> str:
    """The most frequent script of a text's letters, by the first word of their Unicode names."""
    scripts = Counter(unicodedata.name(letter, NO_LABEL).split()[0] for letter in text if letter.isalpha())
    return scripts.most_common(1)[0][0] if scripts else NO_LABEL
