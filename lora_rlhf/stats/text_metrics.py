"""Measures of responses from their text alone: words, repetition, likeness to one another, refusals.

Wherever that makes sense, a figure over a set of responses is one value for each response, so that the responses of two
systems to the same prompts can be compared in pairs. A word is what stands between white space.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Sequence

GRAM = 4  # words of an n-gram that is compared: shorter n-grams repeat in any text
MAX_REFERENCES = 100  # other responses that self-BLEU compares a response with
SAMPLING_SEED = 0
REFUSAL_WORDS = 40  # words of a response in which a refusal is looked for: later ones are quoted or a caveat

# English phrases that decline, in lower case with straight apostrophes. "I am sorry to hear that" does not decline.
_UNABLE = r"(?:can ?not|can't|will not|won't|must not|should not|shouldn't|am not going to|'m not going to)"
_TO_DO = (
    r"(?:be able to |be |in good conscience )?(?:help|assist|answer|provide|give|do that|do this|discuss|comment|"
    r"create|write|generate|comply|fulfil|support|participate|engage|offer|share|advise|recommend|tell you|speak to)"
)
_REFUSALS = re.compile(
    "|".join(
        (
            rf"\bi ?(?:really |also |just |simply )?{_UNABLE} {_TO_DO}",
            r"\bi(?: am|'m) (?:not able|unable|not allowed|not permitted|not willing|unwilling|not comfortable)\b",
            r"\bi (?:do not|don't) feel comfortable\b",
            r"\bi (?:must|have to|need to|will have to|respectfully) (?:decline|refuse)\b",
            r"\bi (?:decline|refuse) to\b",
            r"\bi(?:'d| would) (?:rather|prefer) not\b",
            rf"\b(?:sorry|afraid|apologies|apologize),? (?:but )?(?:that )?i ?{_UNABLE}",
            r"\bas an? (?:ai|artificial|language model)\b[^.!?]*\b(?:can ?not|can't|not able|unable)\b",
            r"\bnot (?:something|a question) (?:that )?i(?: can|'m able| am able)\b",
        )
    )
)


def split_words(text: str) -> list[str]:
    """The words of a text, with their punctuation."""
    return text.split()


def normalized_words(text: str) -> list[str]:
    """The words in lower case without the punctuation around them."""
    stripped_words = (re.sub(r"^\W+|\W+$", "", word) for word in text.lower().split())
    return [word for word in stripped_words if word]


def distinct_ratio(texts: Sequence[str], n: int) -> float | None:
    """Unique n-grams over n-grams of words, over all texts (Li et al., arXiv 1510.03055); None without n-grams.

    It falls with the number of texts: compare only figures over equally many texts.
    """
    grams = [gram for text in texts for gram in _ngrams(split_words(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def distinct_contributions(texts: Sequence[str], n: int) -> list[float]:
    """Each text's part in `distinct_ratio`: the mean is that figure, and the spread gives its jackknife error.

    The jackknife (Tukey 1958) computes the figure without one text, and so what that text adds. All 0 without n-grams.
    """
    counts_by_text = [Counter(_ngrams(split_words(text), n)) for text in texts]
    total: Counter[tuple[str, ...]] = Counter()
    for counts in counts_by_text:
        total.update(counts)
    num_grams, ratio = total.total(), distinct_ratio(texts, n)
    if ratio is None or len(texts) < 2:
        return [ratio or 0.0] * len(texts)
    ratios_without = []
    for counts in counts_by_text:
        num_only_in_text = sum(total[gram] == count for gram, count in counts.items())
        num_remaining = num_grams - counts.total()
        ratios_without.append((len(total) - num_only_in_text) / num_remaining if num_remaining else ratio)
    mean = math.fsum(ratios_without) / len(texts)
    return [ratio + (len(texts) - 1) * (mean - value) for value in ratios_without]


def repeated_gram_share(text: str) -> float:
    """The share of a text's word 4-grams that occur earlier in it; shorter n-grams if it has fewer than five words.

    A text of five words has two 4-grams; a text of three words is measured by its two pairs. So at least two n-grams
    are compared.
    """
    tokens = split_words(text)
    grams = _ngrams(tokens, max(1, min(GRAM, len(tokens) - 1)))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def num_unrepeated_words(text: str) -> int:
    """The number of words without repeated sentences and without words that end a repeated 4-gram.

    It measures the length of the content: a repetition adds nothing.
    """
    sentences = dict.fromkeys(tuple(normalized_words(part)) for part in re.split(r"(?<=[.!?])\s+|\n+", text))
    tokens = [word for sentence in sentences for word in sentence]
    grams = _ngrams(tokens, GRAM)
    return len(tokens) - (len(grams) - len(set(grams)))


def self_bleu(texts: Sequence[str], max_references: int = MAX_REFERENCES) -> list[float]:
    """How like the others each text is, 0 to 1: its BLEU-4 with at most `max_references` other texts as references.

    Self-BLEU (Zhu et al., arXiv 1802.01886) over words: sentence BLEU with effective order, where the k-th order
    that has no match counts as 1 / 2^k of one ("exp" in sacrebleu, Chen and Cherry 2014, method 3). All texts share one
    random sample of references, from a fixed seed; a text is never its own reference. More references give higher
    values: compare only values that were computed over the same number of texts.
    """
    if len(texts) < 2:
        return [0.0] * len(texts)
    pool = random.Random(SAMPLING_SEED).sample(range(len(texts)), min(len(texts), max_references + 1))
    tokens_by_text = [split_words(text) for text in texts]
    top_counts: dict[tuple[str, ...], list[tuple[int, int]]] = {}  # the two largest (count, text) of an n-gram
    for index in pool:
        for gram, count in _count_ngrams(tokens_by_text[index]).items():
            top_counts[gram] = sorted([*top_counts.get(gram, []), (count, index)], reverse=True)[:2]
    pool_set, scores = set(pool), []
    for index, tokens in enumerate(tokens_by_text):
        left_out = index if index in pool_set else pool[-1]  # the same number of references for each text
        matches, totals = [0] * GRAM, [max(0, len(tokens) - order) for order in range(GRAM)]
        for gram, count in _count_ngrams(tokens).items():
            reference_count = next(
                (top_count for top_count, source in top_counts.get(gram, ()) if source != left_out), 0
            )
            matches[len(gram) - 1] += min(count, reference_count)
        lengths = (len(tokens_by_text[reference]) for reference in pool if reference != left_out)
        nearest_length = min(lengths, key=lambda length: (abs(length - len(tokens)), length))
        scores.append(_sentence_bleu(matches, totals, len(tokens), nearest_length))
    return scores


def _sentence_bleu(matches: Sequence[int], totals: Sequence[int], length: int, reference_length: int) -> float:
    """Sentence BLEU from matched and all n-grams of each order (Papineni et al. 2002)."""
    if not any(matches):
        return 0.0
    logs, num_missed = [], 0
    for num_matched, total in zip(matches, totals, strict=True):
        if total == 0:
            break
        num_missed += num_matched == 0
        logs.append(math.log(num_matched / total if num_matched else 1 / (2**num_missed * total)))
    log_brevity_penalty = min(0.0, 1 - reference_length / length)
    return math.exp(log_brevity_penalty + math.fsum(logs) / len(logs))


def has_common_opening(texts: Sequence[str]) -> list[bool]:
    """Whether each text begins with the commonest four words; all False if all beginnings differ."""
    openings = [tuple(normalized_words(text)[:GRAM]) for text in texts]
    commonest = Counter(openings).most_common(1)
    return [commonest[0][1] > 1 and opening == commonest[0][0] for opening in openings]


def has_repeated_answer(texts: Sequence[str]) -> list[bool]:
    """Whether each text is equal to a text for another prompt, case and punctuation aside."""
    return _is_repeated([tuple(normalized_words(text)) for text in texts])


def has_repeated_template(prompts: Sequence[str], texts: Sequence[str]) -> list[bool]:
    """Whether each text is equal to a text for another prompt, except for words of their own prompts.

    Such texts come from one form letter. A text whose words are all in its prompt is no template.
    """
    forms = []
    for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        prompt_words = set(normalized_words(prompt))
        blanked_text = " ".join("\0" if word in prompt_words else word for word in normalized_words(text))
        form = re.sub(r"(?: ?\0)+", " \0", blanked_text)
        forms.append(form if form.strip(" \0") else f"{index}\0")  # equal to no other
    return _is_repeated(forms)


def is_refusal(text: str) -> bool:
    """Whether a response declines to answer: by English phrases within its first 40 words.

    For other languages, or where more care is needed, put a function of the same signature in its place.
    """
    opening = " ".join(text.lower().replace("\u2019", "'").split()[:REFUSAL_WORDS])
    return bool(_REFUSALS.search(opening))


def _is_repeated(values: Sequence[object]) -> list[bool]:
    """Whether each value occurs more than once."""
    counts = Counter(values)
    return [counts[value] > 1 for value in values]


def _count_ngrams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    """The number of each n-gram of 1 to 4 words."""
    return Counter(gram for n in range(1, GRAM + 1) for gram in _ngrams(tokens, n))


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
