"""Every operator against its own matrix: adjoint, pseudo-inverse, functions of its singular values."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gentk import operators
from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.operators import blur
from gentk.operators.composed import Composed, Dense, Foreign
from gentk.operators.masks import Masked
from gentk.recipe.operators import Blur, Box, Compose, Downsample, Grey, Inpaint, MotionBlur, Noise
from tests.operators.cases import COLOUR, GREY, B, every, gens, images, row

NAMES = (
    "noise", "inpaint", "mask file", "box", "random box", "blur", "wide blur", "motion", "straight motion",
    "downsample", "grey", "blur, downsample", "grey, box", "one of one",
)  # fmt: skip
CLOSE = {"rtol": 1e-9, "atol": 1e-11}  # float64; the pseudo-inverses below are conditioned better than 1e5


@pytest.fixture
def op(request: pytest.FixtureRequest, tmp_path: Path) -> operators.Operator:
    return every(tmp_path)[request.param]


over_all = pytest.mark.parametrize("op", NAMES, indirect=True)


def test_the_names_are_all_of_them(tmp_path: Path) -> None:
    assert tuple(every(tmp_path)) == NAMES


def dots(op: operators.Operator, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """<H x, y> and <x, H^T y>, per image."""
    return (op(x) * y).flatten(1).sum(1), (x * op.adjoint(y)).flatten(1).sum(1)


@over_all
def test_adjoint(op: operators.Operator) -> None:
    x, y = images(op.shape), images(op.measured, 1)
    a, b = dots(op, x, y)
    torch.testing.assert_close(a, b, **CLOSE)


def test_a_blur_that_is_taken_for_its_adjoint_fails_that() -> None:
    """Trap of peers (flowdiff.md, section 7.2): `transpose` returns its input, or blurs once more."""
    motion = MotionBlur(name="motion-blur", length=4, angle=30)
    op = operators.build(motion, GREY)
    skewed = blur.Convolved(GREY, op.kernel.roll(1, 0))  # type: ignore[attr-defined]
    x, y = images(GREY), images(GREY, 1)
    for wrong in (lambda v: v, skewed):
        off = (x * wrong(y)).flatten(1).sum(1) - (skewed(x) * y).flatten(1).sum(1)
        assert float(off.abs().min()) > 1e-3


@over_all
def test_pseudo_inverse_is_that_of_the_matrix(op: operators.Operator) -> None:
    """Of the matrix of each image's own operator, cut at the same singular values; and Penrose's identities."""
    x, y = images(op.shape), images(op.measured, 1)
    found = operators.pseudo_inverse(op, y)
    for i in range(B):
        h = operators.matrix(row(op, i))
        s = torch.linalg.svdvals(h)
        inverse = torch.linalg.pinv(h, atol=operators.ROUNDING, rtol=0)
        torch.testing.assert_close(
            found[i].flatten(), inverse @ y[i].flatten(), rtol=1e-7, atol=1e-7 / float(s[-1] + 1e-3)
        )
    hx = op(x)
    torch.testing.assert_close(op(operators.pseudo_inverse(op, hx)), hx, rtol=1e-8, atol=1e-9)
    once = operators.project(op, x)
    torch.testing.assert_close(operators.project(op, once), once, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(operators.pseudo_inverse(op, hx), once, rtol=1e-6, atol=1e-7)


@over_all
@pytest.mark.parametrize(("r", "sigma"), [(0.7, 0.3), (2.0, 0.05)])
def test_regularised_is_the_gaussian_posterior(op: operators.Operator, r: float, sigma: float) -> None:
    y = images(op.measured, 1)
    found = operators.regularised(op, op.seen(y), r, sigma)
    for i in range(B):
        h = operators.matrix(row(op, i))
        gram = r**2 * h @ h.T + sigma**2 * torch.eye(len(h), dtype=torch.float64)
        wanted = r**2 * h.T @ torch.linalg.solve(gram, y[i].flatten())
        torch.testing.assert_close(found[i].flatten(), wanted, rtol=1e-7, atol=1e-9)


@over_all
def test_spectral_is_a_function_of_h_transposed_h(op: operators.Operator) -> None:
    """f(s) = s^2 is H^T H itself, f = 1 the identity; 1 / 2 in between by the matrix."""
    x = images(op.shape)
    torch.testing.assert_close(op.spectral(x, torch.square), op.adjoint(op(x)), **CLOSE)
    torch.testing.assert_close(op.spectral(x, torch.ones_like), x, **CLOSE)
    h = operators.matrix(row(op, 0))
    values, vectors = torch.linalg.eigh(h.T @ h)
    wanted = vectors @ ((-values.clamp_min(0)).exp() * (vectors.T @ x[0].flatten()))
    torch.testing.assert_close(op.spectral(x, lambda s: (-s.square()).exp())[0].flatten(), wanted, **CLOSE)


@over_all
def test_single_precision_and_gradients_pass(op: operators.Operator) -> None:
    x = images(op.shape).float().requires_grad_()
    y = op(x)
    assert y.dtype == torch.float32
    assert y.shape == (B, *op.measured)
    cot = images(op.measured, 1).float()
    (grad,) = torch.autograd.grad(y, x, cot)
    torch.testing.assert_close(grad, op.adjoint(cot), rtol=1e-4, atol=1e-5)


@over_all
def test_measurements(op: operators.Operator) -> None:
    """Noise of deviation sigma where something is measured, none where nothing is; shown in the image's shape."""
    x = images(op.shape)
    eps = images(op.measured, 2)
    y = operators.measure(op, x, 0.1, eps)
    torch.testing.assert_close(y, op.seen(y), **CLOSE)
    seen = op.seen(torch.ones_like(y))
    torch.testing.assert_close((y - op(x)) / 0.1, eps * seen, rtol=1e-6, atol=1e-9)
    assert operators.shown(op, y).shape == x.shape


def test_a_blur_is_a_convolution_and_keeps_the_mean() -> None:
    """Against torch's own on a padded image; a kernel that was not centred would shift it."""
    op = operators.build(Blur(name="blur", size=5, std=1.0), GREY)
    reach = torch.arange(-2, 3, dtype=torch.float64)
    gauss = torch.exp(-reach.square() / 2)
    kernel = torch.outer(gauss, gauss) / gauss.sum() ** 2
    x = images(GREY)
    wanted = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="circular"), kernel[None, None])
    torch.testing.assert_close(op(x), wanted, **CLOSE)


def test_motion_goes_along_its_line() -> None:
    """Of one point, 0 degrees leave a row of 3 pixels, 90 a column; 45 the diagonal from left below to right above."""
    point = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    point[..., 4, 4] = 1.0
    for angle, places in ((0, [(4, 3), (4, 4), (4, 5)]), (90, [(3, 4), (4, 4), (5, 4)])):
        out = operators.build(MotionBlur(name="motion-blur", length=3, angle=angle), GREY)(point)[0, 0]
        assert sum(float(out[p]) for p in places) == pytest.approx(1.0, abs=1e-9)
        assert min(float(out[p]) for p in places) > 0.2
    out = operators.build(MotionBlur(name="motion-blur", length=5, angle=45), GREY)(point)[0, 0]
    assert float(out[3, 5]) > 5 * float(out[3, 3])
    assert float(out.sum()) == pytest.approx(1.0)


def test_each_image_has_its_own_mask_of_its_own_share() -> None:
    op = operators.build(Inpaint(name="inpaint", keep=(0.2, 0.8)), (1, 32, 32), gens(40))
    assert isinstance(op, Masked)
    shares = op.mask.flatten(1).mean(1)
    assert float(shares.min()) > 0.1
    assert float(shares.max()) < 0.9
    assert float(shares.max() - shares.min()) > 0.4
    again = operators.build(Inpaint(name="inpaint", keep=(0.2, 0.8)), (1, 32, 32), gens(40)[5:7])
    assert torch.equal(again.mask, op.mask[5:7])  # type: ignore[attr-defined]
    few = operators.build(Inpaint(name="inpaint", keep=(0.0, 1e-9)), (1, 8, 8), gens(5))
    assert few.mask.flatten(1).sum(1).tolist() == [1.0] * 5  # type: ignore[attr-defined]


def test_drawn_operators_are_known() -> None:
    random, middle = Box(name="box", place="random"), Box(name="box")
    assert operators.drawn(Inpaint(name="inpaint"))
    assert operators.drawn(random)
    assert operators.drawn(Compose(name="compose", parts=(Noise(name="noise"), random)))
    for fixed in (middle, Noise(name="noise"), Inpaint(name="inpaint", mask="m.npz"), Grey(name="grey")):
        assert not operators.drawn(fixed)


def test_mask_files(tmp_path: Path) -> None:
    values = np.eye(8, dtype=np.uint8)
    np.save(tmp_path / "m.npy", values)
    Image.fromarray(values * 255).save(tmp_path / "m.png")
    np.savez(tmp_path / "m.npz", mask=values)
    for name in ("m.npy", "m.png", "m.npz"):
        op = operators.build(Inpaint(name="inpaint", mask=str(tmp_path / name)), GREY)
        assert torch.equal(op.mask[0, 0], torch.eye(8)), name  # type: ignore[attr-defined]


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", mask=np.zeros((8, 8)))
    np.savez(tmp_path / "small.npz", mask=np.ones((4, 4)))
    np.savez(tmp_path / "other.npz", picture=np.ones((8, 8)))
    np.save(tmp_path / "deep.npy", np.ones((3, 8, 8)))
    (tmp_path / "text.png").write_text("no picture")
    cases = [
        (Inpaint(name="inpaint", mask=str(tmp_path / "none.npz")), GREY, RecipeError, "not one pixel is kept"),
        (
            Inpaint(name="inpaint", mask=str(tmp_path / "small.npz")),
            GREY,
            RecipeError,
            "does not cover images of 8 x 8",
        ),
        (Inpaint(name="inpaint", mask=str(tmp_path / "other.npz")), GREY, GentkError, "not a mask"),
        (Inpaint(name="inpaint", mask=str(tmp_path / "deep.npy")), GREY, GentkError, "rows and columns"),
        (Inpaint(name="inpaint", mask=str(tmp_path / "text.png")), GREY, GentkError, "not a mask"),
        (Inpaint(name="inpaint", mask=str(tmp_path / "absent.npz")), GREY, MissingAsset, "no such file"),
        (Box(name="box", height=9), GREY, RecipeError, "leaves nothing of images of 8 x 8"),
        (Box(name="box", height=8, width=8), GREY, RecipeError, "leaves nothing"),
        (Blur(name="blur", size=9), GREY, RecipeError, "does not fit into images of 8 x 8"),
        (Blur(name="blur", size=4), GREY, RecipeError, "is even"),
        (MotionBlur(name="motion-blur", length=12), GREY, RecipeError, "does not fit into images"),
        (Downsample(name="downsample", factor=3), GREY, RecipeError, "do not fill images of 8 x 8"),
        (Grey(name="grey"), GREY, RecipeError, "takes colour images"),
        (Blur(name="blur"), (2,), RecipeError, "is for images"),
        (Compose(name="compose", parts=(Grey(name="grey"), Grey(name="grey"))), COLOUR, RecipeError, "takes colour"),
    ]
    for section, shape, kind, words in cases:
        with pytest.raises(kind, match=words):
            operators.build(section, shape, gens())


def test_sections_refuse_what_means_nothing() -> None:
    with pytest.raises(ValueError, match="not one pixel"):
        Inpaint(name="inpaint", keep=(0.0, 0.0))
    with pytest.raises(ValueError, match=r"0.8 is above 0.2"):
        Inpaint(name="inpaint", keep=(0.8, 0.2))


def test_points_are_left_alone_by_noise() -> None:
    op = operators.build(Noise(name="noise"), (2,))
    x = images((2,))
    assert torch.equal(op(x), x)
    assert torch.equal(operators.matrix(op), torch.eye(2, dtype=torch.float64))


def test_a_composition_without_singular_values_says_which_restorers_need_none() -> None:
    random = Compose(name="compose", parts=(Blur(name="blur"), Inpaint(name="inpaint")))
    op = operators.build(random, GREY, gens())
    a, b = dots(op, images(GREY), images(GREY, 1))
    torch.testing.assert_close(a, b, **CLOSE)
    with pytest.raises(RecipeError, match="a mask for each image") as error:
        operators.pseudo_inverse(op, images(GREY))
    assert "dps" in error.value.hint
    large = Composed((operators.build(Noise(name="noise"), (1, 64, 64)),) * 2)
    with pytest.raises(RecipeError, match="up to 3072 numbers"):
        operators.pseudo_inverse(large, images((1, 64, 64)))


def test_operators_of_another_library() -> None:
    """deepinv's physics have `A` and `A_adjoint`; here a matrix that calls itself so."""
    h = images((5,), 3, 4)
    physics = SimpleNamespace(
        A=lambda x: x.flatten(1) @ h.to(x), A_adjoint=lambda y: (y @ h.to(y).T).reshape(-1, 1, 2, 2)
    )
    op = Foreign(physics, (1, 2, 2))
    assert op.measured == (5,)
    a, b = dots(op, images((1, 2, 2)), images((5,), 1))
    torch.testing.assert_close(a, b, **CLOSE)
    dense = Dense(h.T, (1, 2, 2), (5,))
    torch.testing.assert_close(dense(images((1, 2, 2))), op(images((1, 2, 2))), **CLOSE)
    with pytest.raises(RecipeError, match="not known"):
        operators.pseudo_inverse(op, images((5,)))


@pytest.mark.skipif("GENTK_DATA" not in os.environ, reason="$GENTK_DATA holds the text masks")
@pytest.mark.parametrize(("name", "share"), [("lolcat_extra", 0.851), ("lorem3", 0.860)])
def test_published_text_masks(name: str, share: float) -> None:
    """DDRM's, 256 x 256: their stated share of ones, and a part of them for smaller images."""
    path = str(Path(os.environ["GENTK_DATA"]) / "masks" / f"{name}.npz")
    whole = operators.build(Inpaint(name="inpaint", mask=path), (3, 256, 256))
    assert float(whole.mask.mean()) == pytest.approx(share, abs=5e-4)  # type: ignore[attr-defined]
    part = operators.build(Inpaint(name="inpaint", mask=path, corner=(100, 60)), (3, 32, 32))
    assert torch.equal(part.mask, whole.mask[..., 100:132, 60:92])  # type: ignore[attr-defined]
