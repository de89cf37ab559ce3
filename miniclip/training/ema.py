"""A running mean of the weights along the training (Polyak and Juditsky, 1992), evaluated and kept in their place.

It often generalises better than the last step's weights, and in a fine-tuning it stays nearer to where that began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from miniclip.models.saved import AVERAGE
from miniclip.models.vocabulary import SmallEmbedding
from miniclip.training.diagnostics import local


class Average:
    """Of what moves: the parameters that learn, and BatchNorm's statistics, which are those of the mean's activations
    only nearly, but of no other weights at all. What is locked stays as it is, to the bit.

    With FSDP every process has the mean of its own parts. decay: of the mean; after n steps it is at most
    (1 + n) / (10 + n), so that the first weights are soon forgotten. whole: the model's state with all parts put
    together, which every process calls.
    """

    def __init__(self, model: nn.Module, decay: float, whole: Callable[[], dict[str, Tensor]]) -> None:
        self.model, self.decay, self._whole = model, decay, whole
        kept = model.state_dict()  # asked for once: that of a small vocabulary is put together
        buffers = ((name, value) for name, value in model.named_buffers() if name in kept)
        self._statistics = [name for name, value in buffers if value.is_floating_point()]
        self._mean = [value.clone() for value in map(local, self._moving().values())]

    def _moving(self) -> dict[str, Tensor]:
        found = {name: value.detach() for name, value in self.model.named_parameters() if value.requires_grad}
        return found | {name: self.model.get_buffer(name) for name in self._statistics}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take the weights as they are after so many steps into the mean."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(self._mean, [local(value) for value in self._moving().values()], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The mean stands in the model until the context ends, and the weights stand here."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for mean, value in zip(self._mean, map(local, self._moving().values()), strict=True):
            weights = value.clone()
            value.copy_(mean)
            mean.copy_(weights)

    def save(self, folder: Path, main: bool) -> None:
        """Write the mean beside a checkpoint's weights; every process calls it, and the main one writes."""
        with self.in_place():
            state = self._whole()
            if main:
                mean = {name: state[name].detach().cpu().contiguous() for name in self._moving()}
                save_file(mean, folder / AVERAGE, metadata={"format": "pt"})

    @torch.no_grad()
    def restore(self, folder: Path) -> None:
        """Go on with the mean that lies in a checkpoint; without one, as its run had none, from the model's weights.

        Raises ValueError if it is another model's.
        """
        file, moving = folder / AVERAGE, self._moving()
        saved = load_file(file) if file.exists() else moving
        if saved.keys() != moving.keys():
            name = min(saved.keys() ^ moving.keys())
            raise ValueError(f"{AVERAGE} {'lacks' if name in moving else 'has'} {name}: what learns is another part")
        rows = {
            f"{name}.weight": part.rows for name, part in self.model.named_modules() if isinstance(part, SmallEmbedding)
        }
        for mean, (name, value) in zip(self._mean, moving.items(), strict=True):
            found = saved[name][rows[name]] if file.exists() and name in rows else saved[name]
            if isinstance(value, DTensor) and not isinstance(found, DTensor):
                found = distribute_tensor(found.to(value.device), value.device_mesh, value.placements)
            mean.copy_(local(found))
