"""Langevin chains against the formula on a quadratic energy, slopes against finite differences, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.models import save_tiny, tiny_model
from test_init import SAME, save_open_clip, save_transformers
from torch import Tensor

import miniclip
from miniclip.cli.eval import main
from miniclip.evaluation.dream import Dreaming, Dreamt, dream, energies_of, moments_of, slope_of, view
from miniclip.evaluation.langevin import Chain, kernel, langevin

Shown = pytest.CaptureFixture[str]
SHORT = Chain(steps=4, step=1e-3, temperature=0.01)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def dreamt(model: str, *captions: str, **options: Any) -> Dreamt:
    return dream(*miniclip.load(model), captions, replace(Dreaming(SHORT, samples=2, views=1), **options))


# The chain


@pytest.mark.parametrize(("noise", "temperature"), [(1.0, 0.01), (0.5, 0.01), (1.0, 0.004)])
def test_the_chain_of_a_quadratic_energy(noise: float, temperature: float) -> None:
    """E = k / 2 (x - m)²: the chain is x' - m = a (x - m) + noise sqrt(step) w with a = 1 - step k / (2 T), whose mean
    is m and whose variance is noise² step / (1 - a²): noise² T / k for small steps."""
    k, middle, step = 4.0, 0.4, 1e-4
    generator = torch.Generator().manual_seed(0)
    start = torch.full((1, 3, 40, 40), 0.6)
    chain = Chain(1000, step, noise, temperature, 0.0)
    draw: Callable[[], Tensor] = lambda: torch.randn(start.shape, generator=generator)  # noqa: E731
    states = [x for x, _ in langevin(lambda x: (k * (x - middle), None), start, chain, draw)]
    assert len(states) == 1001 and torch.equal(states[0], start)
    late = torch.stack(states[400::60])  # far apart, so that they tell more than one would
    a = 1 - step * k / (2 * temperature)
    variance = noise**2 * step / (1 - a * a)
    assert variance == pytest.approx(noise**2 * temperature / k, rel=0.03)
    assert late.mean().item() == pytest.approx(middle, abs=5 * (variance / late.numel() * 3) ** 0.5)
    assert late.var().item() == pytest.approx(variance, rel=0.05)


def test_a_chain_without_noise_goes_straight_down() -> None:
    start, chain = torch.full((2, 3, 8, 8), 0.25), Chain(5, 0.02, 0.0, 0.5, 0.0)
    *_, (x, told) = langevin(lambda x: (2 * x - 1.5, x.mean()), start, chain, lambda: torch.randn(2, 3, 8, 8))
    assert torch.allclose(x, 0.75 - 0.5 * torch.tensor(0.96) ** 5)  # a step takes 0.02 / (2 · 0.5) · 2 of the way
    assert told == x.mean()


def test_pixels_stay_in_their_range() -> None:
    start = torch.full((1, 3, 8, 8), 0.5)
    *_, (x, _) = langevin(lambda x: (torch.ones_like(x), None), start, Chain(9, 1.0, 2.0, 1.0, 1.0), lambda: start)
    assert x.min() == 0 and x.max() <= 1


@pytest.mark.parametrize("smooth", [0.0, 0.5, 2.0])
def test_smooth_noise_keeps_the_variance_of_every_pixel(smooth: float) -> None:
    """Also at the edges; and what the gradient is multiplied by is symmetric, and has no negative direction."""
    root = kernel(12, smooth)
    covariance = torch.kron(root @ root.T, root @ root.T)
    assert torch.allclose(covariance.diagonal(), torch.ones(144))
    assert torch.equal(root, torch.eye(12)) == (smooth == 0)
    assert torch.linalg.eigvalsh(covariance.double()).min() > -1e-6
    noise = root @ torch.randn(4000, 12, 12, generator=torch.Generator().manual_seed(0)) @ root.T
    assert torch.allclose(noise.flatten(1).T.cov(), covariance, atol=0.1)


# The energies of a model


def test_energies_are_those_of_the_embeddings(model: str) -> None:
    loaded = miniclip.load(model)
    pixels = torch.randint(0, 256, (3, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    words = ["a red star", "a dog", "a picture", "a photo"]
    x, texts = pixels.permute(0, 3, 1, 2) / 255, torch.from_numpy(loaded.encode(words))
    with torch.no_grad():
        found = energies_of(loaded.model, loaded.preprocess, x, texts, 2, 20.0)
    logits = 20 * torch.from_numpy(loaded.similarity([Image.fromarray(one.numpy()) for one in pixels], words))
    assert torch.allclose(found[:, :2], -logits[:, :2], atol=1e-4)
    assert torch.allclose(found[:, 2], -logits[:, 2:].exp().mean(1).log(), atol=1e-4)


def test_the_slope_is_that_of_finite_differences() -> None:
    """In float64, also through a view."""
    model = tiny_model().eval().double()

    class Double:  # Preprocess.normalize gives float32
        def normalize(self, pixels: Tensor) -> Tensor:
            return pixels / 255 - 0.5

    generator = torch.Generator().manual_seed(1)
    texts = F.normalize(torch.randn(3, 16, generator=generator, dtype=torch.float64), dim=1)
    x = torch.rand(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    followed = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)  # the second chain follows nothing

    def energies(x: Tensor) -> Tensor:
        seen = view(x, torch.Generator().manual_seed(2))
        return energies_of(model, Double(), seen, texts, 1, 10.0)  # type: ignore[arg-type]

    x.requires_grad_()
    gradient = slope_of(energies(x), followed, x)
    assert not gradient[1].any()
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        for at in [(0, 0, 9, 9), (0, 1, 16, 20), (0, 2, 22, 12)]:
            step = torch.zeros_like(x)
            step[at] = 1e-4
            difference = (energies(x + step) - energies(x - step))[0, 1] / 2e-4
            assert gradient[at].item() == pytest.approx(difference.item(), rel=1e-3)


def test_a_view_is_a_square_at_the_same_place_of_all() -> None:
    """An image that rises along an axis does so in a view, more slowly, from where the square begins."""
    ramp = torch.linspace(0, 1, 32).expand(2, 3, 32, 32)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        for x, along in ((ramp, 3), (ramp.transpose(2, 3), 2)):
            seen = view(x, generator)
            assert seen.shape == x.shape and torch.equal(seen[0], seen[1])
            slope = (seen.select(along, 20) - seen.select(along, 10)).mean().item() / (10 / 31)
            assert 0.49 <= slope <= 1.001 and seen.min() >= 0 and seen.max() <= 1


# Whole dreams


def test_the_same_seed_gives_the_same_pixels(model: str) -> None:
    """And rows share start and noise: what another caption follows, or how many there are, changes nothing of a row."""
    before = {name: value.clone() for name, value in miniclip.load(model).model.state_dict().items()}
    one, again = dreamt(model, "a red star", "a dog"), dreamt(model, "a red star", "a dog")
    assert torch.equal(one.images, again.images) and torch.equal(one.energies, again.energies)
    alone, other = dreamt(model, "a dog"), dreamt(model, "a dog", seed=1)
    assert torch.allclose(alone.images[0], one.images[1], atol=1e-5)
    assert torch.allclose(alone.images[1:], one.images[2:], atol=1e-5)
    assert not torch.allclose(alone.images, other.images, atol=0.01)
    start = one.images[:, :, 0]
    assert torch.equal(start, start[:1].expand_as(start)) and not torch.equal(start[0, 0], start[0, 1])
    assert before.keys() == miniclip.load(model).model.state_dict().keys()


def test_a_caption_is_gone_down_and_the_controls_are_not(model: str) -> None:
    """Without noise, of a model that nobody trained: the energy falls under what is followed; nothing moves nothing."""
    down = Chain(steps=12, step=0.02, noise=0.0, temperature=0.5, smooth=1.0)
    found = dreamt(model, "a red star", "a dog", chain=down, views=0)
    energies = found.energies.mean(2)  # steps, rows, under
    for row in range(3):
        assert (energies[1:, row, row] < energies[:-1, row, row]).all()
    assert torch.equal(found.images[3, :, 0], found.images[3, :, -1])
    assert found.images.shape == (4, 2, 5, 3, 32, 32) and found.energies.shape == (13, 4, 2, 3)
    assert found.moments == [0, 2, 3, 6, 12]


def test_moments() -> None:
    assert moments_of(200) == [0, 25, 50, 100, 200] and moments_of(1) == [0, 1] and moments_of(2) == [0, 1, 2]


def test_views_are_averaged(model: str) -> None:
    """The same image gets other energies by one view each time, which by 16 are nearer to one another."""
    still = Chain(steps=8, step=1e-12, noise=0.0, smooth=0.0)
    one, many = (dreamt(model, "a dog", samples=1, views=views, chain=still).energies[:, 0, 0, 0] for views in (1, 16))
    assert 0 < many.std() < one.std() / 2


@pytest.mark.parametrize(("save", "more"), [(save_open_clip, [SAME["vit"]]), (save_transformers, [])])
def test_models_of_other_libraries(save: Any, more: list[Any], tmp_path: Path) -> None:
    found = dreamt(save(tmp_path / "other", *more), "a red star", chain=replace(SHORT, steps=2))
    assert found.energies.isfinite().all() and not torch.equal(found.images[0, :, 0], found.images[0, :, -1])


# The command


def test_the_command(model: str, tmp_path: Path, capsys: Shown) -> None:
    picture, numbers, first = (str(tmp_path / name) for name in ("d.png", "d.json", "first.png"))
    Image.new("RGB", (50, 40), (255, 0, 0)).save(first)
    caption = "one $\\frac \x1b[31m" + "long " * 40
    words = ["dream", model, "a red star", caption, "--steps", "4", "--samples", "2", "--views", "1"]
    for _ in range(2):  # over its own
        assert main([*words, "--out", picture, "--json", numbers, "--start", first, "--noise", "0"]) == 0
    shown = capsys.readouterr().out
    assert "a red star" in shown and "\x1b" not in shown and f"{picture} is the sheet" in shown
    with Image.open(picture) as image:
        assert image.format == "PNG" and max(image.size) < 4000
    found = json.loads(Path(numbers).read_text())
    assert found["dreamt"]["captions"] == ["a red star", caption] and found["dreamt"]["chain"]["steps"] == 4
    assert [len(row["energies"]) for row in found["rows"]] == [5, 5]
    assert found["rows"][0]["energies"][0][0] == pytest.approx(found["rows"][0]["energies_nothing"][0][0], abs=1e-4)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--temperature", "0"], "--temperature 0.0 must be more than 0"),
        (["--step", "-1"], "--step -1.0 must be more than 0"),
        (["--steps", "0"], "--steps 0 must be at least 1"),
        (["--start", "none.png"], "--start none.png: no such file"),
        (["--start", "notes.txt"], "--start notes.txt"),
        (["--out", "notes.txt"], "--out notes.txt holds something else"),
        (["--neutral", " "], "a caption is empty"),
        (["--stepz", "1"], "--stepz is no option here; did you mean --step"),
    ],
)
def test_refusals(
    more: list[str], said: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("mine")
    assert main(["dream", model, "a red star", *more]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_without_captions(model: str, capsys: Shown) -> None:
    assert main(["dream", model]) == 2
    assert "captions" in capsys.readouterr().err


def test_a_model_without_gradients_is_refused(model: str) -> None:
    towers, preprocess, tokenizer = miniclip.load(model)
    encode = towers.encode_image
    for broken in (lambda x: encode(x).detach(), lambda x: encode(x.detach())):
        towers.encode_image = broken
        with pytest.raises(ValueError, match="no gradient"):
            dream(towers, preprocess, tokenizer, ["a dog"], Dreaming(SHORT))
