"""Contrast tuples (q, r+, r-): r- is the other response most similar to r+. RestoreLCC section 3.2.

Letters: N responses, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from restorelcc.base.errors import BadInput
from restorelcc.stages.corpus.encoder import Encode
from restorelcc.stages.corpus.values import normal

_SIMILARITIES_AT_ONCE = 1 << 21  # numbers of the similarity matrix in memory
_OPPOSITE = {"yes": "no", "no": "yes", "true": "false", "false": "true"}


def negatives(examples: Sequence[dict[str, Any]], count: int, encode: Encode | None) -> list[str]:
    """The negative response of the first `count` examples (columns response and, where there are any, choices).

    Of a multiple-choice example the most similar wrong choice, unless all are the right one in other case or spacing;
    of a yes/no answer the flipped label; of any other the most similar other response of all examples. Never the
    response itself, or the same words in other case or spacing.
    """
    found: list[str | None] = [None] * min(count, len(examples))
    free = []
    for number, example in enumerate(examples[:count]):
        response, choices = example["response"], example.get("choices") or []
        wrong = [choice for choice in choices if normal(choice) != normal(response)]
        if wrong:
            found[number] = wrong[_closest(response, wrong, encode)] if len(wrong) > 1 else wrong[0]
        elif (flipped := flipped_label(response)) is not None:
            found[number] = flipped
        else:
            free.append(number)
    if free:
        responses = [example["response"] for example in examples]
        for number, other in zip(free, most_similar_other(responses, encode, free), strict=True):
            found[number] = responses[other]
    return [negative for negative in found if negative is not None]


def flipped_label(response: str) -> str | None:
    """`No.` for `Yes.`, `true` for `false`; None when the response is no such label. Case and full stop are kept."""
    bare = response.strip()
    stop = "." if bare.endswith(".") else ""
    word = bare.removesuffix(".")
    opposite = _OPPOSITE.get(word.lower())
    if opposite is None:
        return None
    if word.isupper():
        opposite = opposite.upper()
    elif word[:1].isupper():
        opposite = opposite.capitalize()
    return opposite + stop


def most_similar_other(
    responses: list[str], encode: Encode | None = None, of: Sequence[int] | None = None
) -> list[int]:
    """For each response (of those numbered in `of`) the position of the most similar one that is not the same text;
    of equals the first. Raises BadInput when all responses are the same text.

    Similarity is the cosine under the encoder, or of TF-IDF over words and word pairs where there is none. The N x N
    matrix is never in memory: a few rows of it at a time are.
    """
    rows_of = np.arange(len(responses)) if of is None else np.asarray(of)
    numbers: dict[str, int] = {}
    identity = np.array([numbers.setdefault(normal(response), len(numbers)) for response in responses])
    if identity.max(initial=0) == 0:
        raise BadInput("the training responses are all the same text: contrast tuples need at least two different ones")
    vectors = _vectors(responses, encode)
    step = max(1, _SIMILARITIES_AT_ONCE // len(responses))
    nearest: list[int] = []
    for start in range(0, len(rows_of), step):
        rows = rows_of[start : start + step]
        product = vectors[rows] @ vectors.T
        similarity = product if isinstance(product, np.ndarray) else product.toarray()
        similarity[identity[rows, None] == identity[None, :]] = -2.0
        nearest.extend(similarity.argmax(axis=1).tolist())
    return nearest


def _closest(response: str, others: list[str], encode: Encode | None) -> int:
    """Which of the others is most similar."""
    vectors = _vectors([response, *others], encode)
    product = vectors[[0]] @ vectors[1:].T
    similarity = product if isinstance(product, np.ndarray) else product.toarray()
    return int(similarity[0].argmax())


def _vectors(texts: list[str], encode: Encode | None) -> Any:
    """Unit vectors: an array [N, E] from the encoder, or a sparse matrix of TF-IDF weights."""
    if encode is not None:
        return np.asarray(encode(texts), dtype=np.float32)
    try:
        return TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\S+").fit_transform(map(normal, texts))
    except ValueError as error:
        raise BadInput(f"the training responses hold no words to compare: {error}") from error
