"""Choosing one of a question's candidates by their answers and scores: how often is the choice right?

Every figure is an expectation over subsets of n candidates, drawn without replacement from a pool of P. What depends on
an order alone (best-of-N, the oracle) is computed exactly, as Chen et al. 2021 (arXiv 2107.03374) compute pass@k; votes
are counted in all subsets, or in a random sample of them where there are too many. The rules are those of
huggingface/search-and-learn and RyanLiu112/compute-optimal-tts.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cpmi.protocols import BoolArray, FloatArray, IntArray

_TIE = 1e-12  # sums of the same weights differ by less than this share of them, in whatever order they are added
_SPREAD = 600.0  # exp(-600) is still a normal number, with all its digits


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """The P candidates of a question, graded.

    Attributes:
        id: the question's.
        ids: of the candidates.
        right: (P,) whether a candidate's answer is the right one; never where it has none.
        classes: (P,) candidates with the same number have the same answer; -1: no answer.
        subset: of the data that the question belongs to.
    """

    id: str
    ids: tuple[str, ...]
    right: BoolArray
    classes: IntArray
    subset: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def answered(self) -> BoolArray:
        """(P,)"""
        return np.asarray(self.classes >= 0)

    def sorted(self, seed: int) -> Pool:
        """The candidates in the order in which ties are broken: by a hash, since any other order favors somebody."""
        order = sorted(range(len(self)), key=lambda i: _hash(seed, self.ids[i]))
        ids = tuple(self.ids[i] for i in order)
        return Pool(self.id, ids, self.right[order], self.classes[order], self.subset)


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:16])


# --- by an order: exact ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _shares(size: int, n: int) -> FloatArray:
    """(size + 1,) the share of the subsets of n that are drawn from k given candidates alone, for k from 0 to size."""
    every = math.comb(size, n)
    return np.array([math.comb(k, n) / every for k in range(size + 1)])


def shares(size: int, sizes: Sequence[int]) -> FloatArray:
    """(sizes, size + 1) C(k, n) / C(size, n) for each n of ``sizes`` and each k."""
    return np.stack([_shares(size, n) for n in sizes])


def oracle(pool: Pool, sizes: Sequence[int]) -> FloatArray:
    """(sizes,) chance that a right answer is among n candidates: pass@n = 1 - C(P - c, n) / C(P, n)."""
    return np.asarray(1 - shares(len(pool), sizes)[:, len(pool) - int(pool.right.sum())])


def highest(pool: Pool, scores: FloatArray, eligible: BoolArray, sizes: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """Best-of-n: the eligible candidate with the highest score, the first one in the pool where several have it.

    The candidate at place r of that order is chosen where it is drawn, and none before it.

    Args:
        scores: (P,).
        eligible: (P,) whether a candidate can be chosen; where none of a subset can, the choice is wrong.

    Returns:
        (sizes,) the share of subsets where the choice is right; (sizes,) where different answers share the top score.
    """
    share, size = shares(len(pool), sizes), len(pool)
    order = np.flatnonzero(eligible)[np.argsort(-scores[eligible], kind="stable")]
    at_least = share[:, size - np.arange(len(order) + 1)]  # the first one drawn is at place r or later
    right = (at_least[:, :-1] - at_least[:, 1:]) @ pool.right[order]
    return right, _tied(2 * pool.classes[order] + pool.right[order], scores[order], share)


def _tied(kinds: IntArray, scores: FloatArray, share: FloatArray) -> FloatArray:
    """(sizes,) the share of subsets in which candidates of different kinds have the highest score.

    Args:
        kinds, scores: (eligible,) from the highest score to the lowest.
    """
    tied = np.zeros(len(share))
    edges = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1], [True]])) if len(scores) else np.zeros(1)
    for start, end in itertools.pairwise(edges.tolist()):
        if end - start == 1:
            continue
        _, counts = np.unique(kinds[start:end], return_counts=True)
        if len(counts) > 1:
            below = share.shape[1] - 1 - end
            one_kind = share[:, below + counts] - share[:, [below]]
            tied += share[:, below + end - start] - share[:, below] - one_kind.sum(axis=1)
    return tied


# --- by votes: in all subsets, or in a sample of them ---------------------------------------------------------------


def subsets_of(pool: Pool, n: int, most: int, seed: int) -> BoolArray:
    """(S, P) who is drawn: all subsets of n candidates if there are at most ``most``, else so many random ones.

    The random ones depend on the seed, the question and n alone.
    """
    if math.comb(len(pool), n) <= most:
        return _all_subsets(len(pool), n)
    drawn = np.zeros((most, len(pool)), dtype=np.bool_)
    drawn[:, :n] = True
    return np.random.default_rng(_hash(seed, pool.id, n)).permuted(drawn, axis=1)


@functools.lru_cache(maxsize=256)
def _all_subsets(size: int, n: int) -> BoolArray:
    chosen = np.array(list(itertools.combinations(range(size), n)))
    members = np.zeros((len(chosen), size), dtype=np.bool_)
    np.put_along_axis(members, chosen, values=True, axis=1)
    return members


class Ballot:
    """The votes of C classes of equal answers in S subsets of a pool.

    Args:
        members: (S, P) who is drawn.
        eligible: (P,) whose votes count. A class without any has no vote at all; a class that wins gives the answer of
            its first member in the pool's order.
    """

    def __init__(self, pool: Pool, members: BoolArray, eligible: BoolArray) -> None:
        self._drawn = np.ascontiguousarray(members[:, eligible].T, dtype=np.float64)  # (V, S)
        self._right = np.append(pool.right[eligible], False)
        _, index, counts = np.unique(pool.classes[eligible], return_inverse=True, return_counts=True)
        self._members = [np.flatnonzero(index == c) for c in range(len(counts))]
        places = np.where(self._drawn > 0, np.arange(len(index))[:, None], len(index)).astype(np.int32)
        by_class = np.argsort(index, kind="stable")
        starts = np.cumsum(counts) - counts
        self._first = np.minimum.reduceat(places[by_class], starts, axis=0)  # (C, S) V where none is drawn

    def count(self, logits: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Let every candidate vote with the weight exp(logit), in K ways at once.

        Args:
            logits: (K, V) of the eligible ones; -inf: a weight of 0. A constant added to a row changes nothing.

        Returns:
            (K,) the share of subsets where the winner is right; (K,) where several answers have the most votes. The one
            whose first member comes first wins then.
        """
        finite = np.isfinite(logits)
        low, high = (
            function(np.where(finite, logits, fill), axis=1) for function, fill in ((np.min, np.inf), (np.max, -np.inf))
        )
        high = np.where(np.isfinite(high), high, 0.0)
        wide = high - low > _SPREAD
        weights = np.exp(np.where(wide, -np.inf, logits.T - high).T)
        votes = np.empty((len(logits), len(self._members), self._drawn.shape[1]))
        for c, members in enumerate(self._members):  # not a product of matrices: BLAS has little to do, in many threads
            np.einsum("kv,vs->ks", weights[:, members], self._drawn[members], out=votes[:, c])
        for k in np.flatnonzero(wide):
            votes[k] = self._wide_votes(logits[k])
        return self._outcome(votes)

    def _wide_votes(self, logits: FloatArray) -> FloatArray:
        """(C, S) relative to the highest in each subset, since relative to the highest of all they could all vanish."""
        drawn = np.where(self._drawn > 0, logits[:, None], -np.inf)
        high = drawn.max(axis=0)
        weights = np.exp(drawn - np.where(np.isfinite(high), high, 0.0))
        return np.stack([weights[members].sum(axis=0) for members in self._members])

    def _outcome(self, votes: FloatArray) -> tuple[FloatArray, FloatArray]:
        """From (K, C, S) votes."""
        nobody = len(self._right) - 1
        votes[:, self._first == nobody] = -1.0
        tied = votes >= votes.max(axis=1, keepdims=True) * (1 - _TIE)  # none where all are -1: then nothing is chosen
        winner = np.where(tied, self._first, np.int32(nobody)).min(axis=1)
        return self._right[winner].mean(axis=1), (tied.sum(axis=1) > 1).mean(axis=1)


def votes(
    pool: Pool, members: BoolArray, eligible: Sequence[BoolArray], logits: Sequence[FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """What K ways of weighing votes come to over S subsets; see ``Ballot.count``.

    Args:
        members: (S, P).
        eligible: K times (P,) whose votes count.
        logits: K times (P,).

    Returns:
        (K,) the share of subsets where the winner is right; (K,) where several answers have the most votes.
    """
    right, tied = np.zeros(len(logits)), np.zeros(len(logits))
    alike: dict[bytes, list[int]] = {}
    for k, mask in enumerate(eligible):
        alike.setdefault(mask.tobytes(), []).append(k)
    for ways in alike.values():
        mask = eligible[ways[0]]
        if mask.any():
            ballot = Ballot(pool, members, mask)
            right[ways], tied[ways] = ballot.count(np.stack([logits[k][mask] for k in ways]))
    return right, tied
