"""Orders to look at the N pairs in: what belongs together lies together, what is worst comes first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# the order of the leaves that puts neighbours side by side takes more than quadratic time
OPTIMAL_UP_TO = 512


def orders(image: Tensor, text: Tensor, loss: Tensor, captions: list[str]) -> dict[str, list[int]]:
    """Permutations of the N pairs: index, as they come; loss, the highest first; cluster; length of the caption.

    image, text: (N, E) float, of any length. loss: (N,). captions: N; the shortest first, in characters. cluster: pairs
    whose images and texts are alike side by side, the leaves of a hierarchical clustering (average linkage) of the unit
    embeddings, joined. Equal ones keep their order. Embeddings must be finite (build has checked them).
    """
    return {
        "index": list(range(len(captions))),
        "loss": loss.argsort(descending=True, stable=True).tolist(),
        "cluster": _clustered(torch.cat([F.normalize(part.detach().double(), dim=1) for part in (image, text)], 1)),
        "length": sorted(range(len(captions)), key=lambda i: len(captions[i])),
    }


def _clustered(x: Tensor) -> list[int]:
    n = len(x)
    if n < 2:
        return list(range(n))

    from scipy.cluster.hierarchy import leaves_list, linkage

    squares = x.square().sum(1)
    distances = (squares[:, None] + squares - 2 * x @ x.T).clamp(min=0).sqrt()
    upper = torch.triu_indices(n, n, 1)
    tree = linkage(distances[upper[0], upper[1]].cpu().numpy(), "average", optimal_ordering=n <= OPTIMAL_UP_TO)
    return [int(leaf) for leaf in leaves_list(tree)]
