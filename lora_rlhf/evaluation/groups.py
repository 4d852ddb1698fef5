"""Prompts in groups, by category and by language, and whether failures gather in some of them."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from lora_rlhf.data.refusals import counted
from lora_rlhf.data.schema import Prompt
from lora_rlhf.evaluation.report_model import Cluster
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

USUAL_CATEGORIES = ("category", "use_case")
USUAL_LANGUAGES = ("language", "lang")
NONE = "(none)"
FEWEST_OF_GROUP = 10  # prompts: with fewer, an interval says nothing
MOST_GROUPS = 50
NUM_SHUFFLES = 2000
SHUFFLING_SEED = 0


def categories_of(prompts: Sequence[Prompt], column: str | None) -> list[str] | None:
    """Each prompt's category, "(none)" without one; None where no column was asked for and there is none.

    UserError for a column that was asked for and is not there, is empty everywhere, or has more than 50 values.
    """
    labels = _labels(prompts, [column] if column else USUAL_CATEGORIES)
    if labels is None:
        if column is None:
            return None
        names = sorted({name for prompt in prompts for name in prompt.meta})
        fault = f"the columns are: {', '.join(names)}" if names else "the prompts have no columns of their own"
        if column in names:
            fault = f"the column is empty for all {counted(len(prompts), 'prompt')}"
        raise UserError(f"--category {column}: {fault}")
    if len(set(labels)) > MOST_GROUPS:
        if column is None:
            return None
        raise UserError(
            f"--category {column}: {len(set(labels))} different values, more than {MOST_GROUPS} are no help"
        )
    if empty := labels.count(NONE):
        log.warning("%s of %d have no category and are reported as %s", counted(empty, "prompt"), len(labels), NONE)
    return labels


def languages_of(prompts: Sequence[Prompt]) -> list[str]:
    """Each prompt's language: of its column language or lang; else the script that it is written in (LATIN, CJK)."""
    return _labels(prompts, USUAL_LANGUAGES) or [_script(prompt.messages[-1].content) for prompt in prompts]


def by_category(categories: Sequence[str]) -> dict[str, list[int]]:
    """{category: the indices of its prompts}, largest category first, then by name."""
    indices: dict[str, list[int]] = {}
    for index, name in enumerate(categories):
        indices.setdefault(name, []).append(index)
    return dict(sorted(indices.items(), key=lambda item: (-len(item[1]), item[0])))


def clusters(failed: Sequence[float | None], labels: Sequence[str]) -> Cluster | None:
    """Whether failures gather in some groups; None for fewer than two groups.

    failed: 1 where the prompt failed, 0 where not, None where not known. p: the share of 2,000 random relabelings whose
    chi-squared statistic over groups and failures is as large (a permutation test). Groups of under ten prompts are
    left out. `worst` has the highest rate of failures.
    """
    groups = {label: [i for i in rows if failed[i] is not None] for label, rows in by_category(labels).items()}
    groups = {label: rows for label, rows in groups.items() if len(rows) >= FEWEST_OF_GROUP}
    if len(groups) < 2:
        return None
    values = torch.tensor([float(failed[i] or 0.0) for rows in groups.values() for i in rows], dtype=torch.float64)
    sizes = torch.tensor([len(rows) for rows in groups.values()])
    membership = torch.repeat_interleave(torch.arange(len(groups)), sizes)
    generator = torch.Generator().manual_seed(SHUFFLING_SEED)
    observed = _spread(values, membership)
    as_large = sum(
        _spread(values[torch.randperm(len(values), generator=generator)], membership) >= observed - 1e-12
        for _ in range(NUM_SHUFFLES)
    )
    rates = {label: sum(failed[i] or 0.0 for i in rows) / len(rows) for label, rows in groups.items()}
    worst = max(rates, key=lambda label: rates[label])
    return Cluster(
        p=(as_large + 1) / (NUM_SHUFFLES + 1),
        worst=worst,
        rate=rates[worst],
        n=len(groups[worst]),
        overall=values.mean().item(),
        groups=len(groups),
    )


def _spread(values: torch.Tensor, membership: torch.Tensor) -> float:
    """The chi-squared statistic's part that depends on the labels: squared distances of group means, by size."""
    sizes = torch.bincount(membership).double()
    means = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, membership, values) / sizes
    return (sizes * (means - values.mean()) ** 2).sum().item()


def _labels(prompts: Sequence[Prompt], names: Sequence[str]) -> list[str] | None:
    """The first of these columns that holds anything."""
    for name in names:
        labels = [_label(prompt.meta.get(name)) for prompt in prompts]
        if any(label != NONE for label in labels):
            return labels
    return None


def _label(value: Any) -> str:
    return str(value).strip() or NONE if isinstance(value, str | int | bool) else NONE


def _script(text: str) -> str:
    """The commonest script among a text's letters, by the first word of their Unicode names."""
    scripts = Counter(unicodedata.name(letter, NONE).split()[0] for letter in text if letter.isalpha())
    return scripts.most_common(1)[0][0] if scripts else NONE
