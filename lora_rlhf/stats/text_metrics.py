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


def words(text: str) -> list[str]:
    """The words of a text as they stand."""
    return text.split()


def plain_words(text: str) -> list[str]:
    """The words in lower case without the punctuation around them."""
    stripped = (re.sub(r"^\W+|\W+$", "", word) for word in text.lower().split())
    return [word for word in stripped if word]


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Unique n-grams over n-grams of words, over all texts (Li et al., arXiv 1510.03055); None without any.

    Falls with the number of texts: compare only figures over as many.
    """
    grams = [gram for text in texts for gram in _ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def distinct_per_response(texts: Sequence[str], n: int) -> list[float]:
    """Each text's part in `distinct`: values whose mean is that figure, and whose spread gives its jackknife error.

    The jackknife (Tukey 1958) asks what the figure would be without one text, and what that text therefore adds. All 0
    where there are no n-grams.
    """
    counts_of = [Counter(_ngrams(words(text), n)) for text in texts]
    total: Counter[tuple[str, ...]] = Counter()
    for counts in counts_of:
        total.update(counts)
    num_grams, whole = total.total(), distinct(texts, n)
    if whole is None or len(texts) < 2:
        return [whole or 0.0] * len(texts)
    without = []
    for counts in counts_of:
        only_here = sum(total[gram] == count for gram, count in counts.items())
        remaining = num_grams - counts.total()
        without.append((len(total) - only_here) / remaining if remaining else whole)
    mean = math.fsum(without) / len(texts)
    return [whole + (len(texts) - 1) * (mean - value) for value in without]


def repetition(text: str) -> float:
    """Share of a text's word 4-grams that occur earlier in it; of shorter n-grams where it has fewer than five words.

    A text of five words has two 4-grams; a text of three words is measured by its two pairs. So two n-grams at least
    are compared.
    """
    tokens = words(text)
    grams = _ngrams(tokens, max(1, min(GRAM, len(tokens) - 1)))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def unrepeated_words(text: str) -> int:
    """The number of words without repeated sentences and without words that end a repeated 4-gram.

    The length of what a text says: saying it again adds nothing.
    """
    sentences = dict.fromkeys(tuple(plain_words(part)) for part in re.split(r"(?<=[.!?])\s+|\n+", text))
    tokens = [word for sentence in sentences for word in sentence]
    grams = _ngrams(tokens, GRAM)
    return len(tokens) - (len(grams) - len(set(grams)))


def self_bleu(texts: Sequence[str], max_references: int = MAX_REFERENCES) -> list[float]:
    """How like the others each text is, 0 to 1: its BLEU-4 with at most `max_references` other texts as references.

    Self-BLEU (Zhu et al., arXiv 1802.01886) of words in place: sentence BLEU with effective order, where the k-th order
    that has no match counts as 1 / 2^k of one ("exp" in sacrebleu, Chen and Cherry 2014, method 3). The references are
    the same random texts for all, drawn from a fixed seed, less the text itself; so the time grows with the number of
    words alone. More references make it higher: compare only figures over as many texts.
    """
    if len(texts) < 2:
        return [0.0] * len(texts)
    pool = random.Random(SAMPLING_SEED).sample(range(len(texts)), min(len(texts), max_references + 1))
    tokens_of = [words(text) for text in texts]
    top_counts: dict[tuple[str, ...], list[tuple[int, int]]] = {}  # the two largest (count, text) of an n-gram
    for index in pool:
        for gram, count in _all_grams(tokens_of[index]).items():
            top_counts[gram] = sorted([*top_counts.get(gram, []), (count, index)], reverse=True)[:2]
    pooled, scores = set(pool), []
    for index, tokens in enumerate(tokens_of):
        left_out = index if index in pooled else pool[-1]  # the same number of references for each text
        matches, totals = [0] * GRAM, [max(0, len(tokens) - order) for order in range(GRAM)]
        for gram, count in _all_grams(tokens).items():
            reference_count = next((top for top, source in top_counts.get(gram, ()) if source != left_out), 0)
            matches[len(gram) - 1] += min(count, reference_count)
        lengths = (len(tokens_of[reference]) for reference in pool if reference != left_out)
        nearest = min(lengths, key=lambda length: (abs(length - len(tokens)), length))
        scores.append(_bleu(matches, totals, len(tokens), nearest))
    return scores


def _bleu(matches: Sequence[int], totals: Sequence[int], length: int, reference_length: int) -> float:
    """Sentence BLEU from matched and all n-grams of each order (Papineni et al. 2002)."""
    if not any(matches):
        return 0.0
    logs, missed = [], 0
    for matched, total in zip(matches, totals, strict=True):
        if total == 0:
            break
        missed += matched == 0
        logs.append(math.log(matched / total if matched else 1 / (2**missed * total)))
    brevity = min(0.0, 1 - reference_length / length)
    return math.exp(brevity + math.fsum(logs) / len(logs))


def same_opening(texts: Sequence[str]) -> list[bool]:
    """Which texts begin with the commonest four words; none where all beginnings differ."""
    openings = [tuple(plain_words(text)[:GRAM]) for text in texts]
    commonest = Counter(openings).most_common(1)
    return [commonest[0][1] > 1 and opening == commonest[0][0] for opening in openings]


def same_answer(texts: Sequence[str]) -> list[bool]:
    """Which texts are equal to a text for another prompt, case and punctuation aside."""
    return _repeated([tuple(plain_words(text)) for text in texts])


def same_template(prompts: Sequence[str], texts: Sequence[str]) -> list[bool]:
    """Which texts are equal to a text for another prompt, except for words that stand in their own prompts.

    Such texts come from one form letter. A text whose words all stand in its prompt is no template.
    """
    forms = []
    for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        prompt_words = set(plain_words(prompt))
        blanked = " ".join("\0" if word in prompt_words else word for word in plain_words(text))
        form = re.sub(r"(?: ?\0)+", " \0", blanked)
        forms.append(form if form.strip(" \0") else f"{index}\0")  # equal to no other
    return _repeated(forms)


def refuses(text: str) -> bool:
    """Whether a response declines to answer: by English phrases within its first 40 words.

    For other languages, or where more care is needed, put a function of the same signature in its place.
    """
    opening = " ".join(text.lower().replace("\u2019", "'").split()[:REFUSAL_WORDS])
    return bool(_REFUSALS.search(opening))


def _repeated(keys: Sequence[object]) -> list[bool]:
    counts = Counter(keys)
    return [counts[key] > 1 for key in keys]


def _all_grams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(gram for n in range(1, GRAM + 1) for gram in _ngrams(tokens, n))


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
