"""The energy-based view of the matrix (LeCun et al., 2006; JEM, arXiv:1912.03263): a low energy is a likely pair.

With E = -logits, image i has the free energy F_i = -log sum_j exp(-E_ij), and its row of the softmax loss is
E_ii - F_i: training lowers the energy of the pairs and raises the free energy of everything else. An image that no
caption suits has a high free energy, which makes it a score for what a classifier has never seen.
"""

from __future__ import annotations

from torch import Tensor


def free_energy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Free energy of each image, over all texts, and of each text, over all images: (N,) and (M,), in nats."""
    return -logits.logsumexp(1), -logits.logsumexp(0)
