"""Big batches in small memory: gradient caching (Gao et al., arXiv:2101.06983), exact.

The loss needs the embeddings of the whole batch, but its gradient reaches the towers one pair at a time: so embed in
chunks without a graph, take the gradient of the loss with respect to the embeddings, then embed each chunk again with a
graph and push its share of that gradient through. Exact for towers whose output for a pair depends on that pair alone
(ViT, text); a ResNet's BatchNorm sees chunks in place of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from miniclip.losses.matrix import Embeddings
from miniclip.models.batchnorm import frozen_statistics
from miniclip.models.cut import Cut


def cached_backward(
    model: nn.Module,
    image: Tensor,
    text: Tensor,
    loss_of: Callable[[Embeddings], Tensor],
    *,
    chunk: int,
    cut: Cut = Cut(),  # noqa: B008
    backward: Callable[[Tensor], None] = Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[Tensor, Embeddings]:
    """Accumulate the gradient of loss_of(model(image, text)) as if the batch had gone through at once.

    image: (B, 3, S, S), text: (B K, L), K for each image; or features, see Cut. chunk: images in memory at a time.
    backward: called with the loss, so that fp16 can scale it; the chunks inherit that scale. no_sync: context of every
    chunk but the last, so that DDP reduces once.
    Returns the loss (0-dim) and the embeddings of the batch, both detached.
    """
    captions = len(text) // len(image)
    images, texts = image.split(chunk), text.split(chunk * captions)
    states, parts = [], []
    with torch.no_grad(), frozen_statistics(model):
        for chunk_image, chunk_text in zip(images, texts, strict=True):
            states.append(_RandomState(image.device))
            parts.append(model(chunk_image, chunk_text, cut))
    bias = parts[0].bias
    whole = Embeddings(
        torch.cat([p.image for p in parts]).requires_grad_(),
        torch.cat([p.text for p in parts]).requires_grad_(),
        parts[0].scale.detach().clone().requires_grad_(),
        None if bias is None else bias.detach().clone().requires_grad_(),
    )
    loss = loss_of(whole)
    backward(loss)

    gradient_chunks = zip(
        _gradient(whole.image).split(chunk), _gradient(whole.text).split(chunk * captions), strict=True
    )
    last = len(images) - 1
    for i, (image_gradient, text_gradient) in enumerate(gradient_chunks):
        with nullcontext() if i == last else no_sync():
            with states[i].replayed():
                part = model(images[i], texts[i], cut)
            # scale and bias belong to the batch, not to a chunk: their gradient goes in once
            once = float(i == last)
            total = (part.image * image_gradient).sum() + (part.text * text_gradient).sum()
            total = total + once * part.scale * _gradient(whole.scale)
            if part.bias is not None and whole.bias is not None:
                total = total + once * part.bias * _gradient(whole.bias)
            total.backward()
    bias = None if whole.bias is None else whole.bias.detach()
    return loss.detach(), Embeddings(whole.image.detach(), whole.text.detach(), whole.scale.detach(), bias)


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


class _RandomState:
    """The generators' states before a chunk, so that its second pass draws the same dropout masks as its first."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[self.device] if self.cuda is not None else []):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield
