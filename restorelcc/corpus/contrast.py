"""Contrast tuples (q, r+, r-): r- is the other response most similar to r+. RestoreLCC section 3.2."""

from __future__ import annotations

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from restorelcc.core.errors import BadInput

_ROWS_AT_ONCE = 512


def most_similar_other(responses: list[str]) -> list[int]:
    """For each response the position of the most similar one that is not the same text (cosine of TF-IDF, words and
    word pairs); of equals the first. Raises BadInput when all responses are the same text."""
    normal = [" ".join(response.lower().split()) for response in responses]
    identity = np.unique(normal, return_inverse=True)[1]
    if identity.max(initial=0) == 0:
        raise BadInput("the training responses are all the same text: contrast tuples need at least two different ones")
    try:
        vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\S+").fit_transform(normal)
    except ValueError as error:
        raise BadInput(f"the training responses hold no words to compare: {error}") from error
    nearest: list[int] = []
    for start in range(0, len(normal), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        similarity = (vectors[rows] @ vectors.T).toarray()
        similarity[identity[rows, None] == identity[None, :]] = -1.0
        nearest.extend(similarity.argmax(axis=1).tolist())
    return nearest
