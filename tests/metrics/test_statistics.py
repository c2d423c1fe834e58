"""Statistics files: those of EDM, pytorch-fid and clean-fid, our own, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gentk.errors import GentkError, MissingAsset, RecipeError, RunFailed
from gentk.metrics.frechet import Moments, frechet, frechet_of
from gentk.metrics.statistics import read, write

D = 5
FEATURES = torch.randn(40, D, generator=torch.Generator().manual_seed(0)).double().numpy() @ np.diag([1, 2, 3, 4, 5])
OTHER = FEATURES[:20] + 1
MU, SIGMA = FEATURES.mean(0), np.cov(FEATURES, rowvar=False)
SHA = "a" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stats.npz"


def expected() -> float:
    return frechet_of(FEATURES, OTHER)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_theirs(save: Callable[..., None], dtype: type, path: Path) -> None:
    """EDM's are plain, pytorch-fid's compressed, both with `mu` and `sigma` alone; single precision will do."""
    save(path, mu=MU.astype(dtype), sigma=SIGMA.astype(dtype))
    found = read(path, protocol="edm", weights=SHA, width=D)
    assert (found.n, found.protocol, found.weights) == (None, None, None)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    rel = 1e-12 if dtype is np.float64 else 1e-5
    assert frechet(found.moments, Moments().update(OTHER)) == pytest.approx(expected(), rel=rel)


def test_theirs_with_more_in_it(path: Path) -> None:
    """ADM's hold spatial statistics and predictions besides; the shared data's proxies hold n."""
    np.savez(path, mu=MU, sigma=SIGMA, mu_s=MU, sigma_s=SIGMA, arr_0=np.zeros(3), n=40)
    assert read(path).n == 40


def test_features_in_the_file(tmp_path: Path) -> None:
    """clean-fid's files for KID."""
    path = tmp_path / "cifar10_clean_train_32_kid.npz"
    np.savez(path, feats=FEATURES.astype(np.float32))
    found = read(path, protocol="clean")
    assert (found.n, found.protocol) == (40, "clean")
    np.testing.assert_allclose(found.mean, MU, rtol=1e-6)
    np.testing.assert_allclose(found.covariance, SIGMA, rtol=1e-5, atol=1e-6)


def test_ours_say_where_they_come_from(path: Path) -> None:
    moments = Moments().update(FEATURES)
    write(path, moments, protocol="edm", weights=SHA)
    found = read(path, protocol="edm", weights=SHA, width=D)
    assert (found.n, found.protocol, found.weights) == (40, "edm", SHA)
    np.testing.assert_array_equal(found.mean, MU)
    np.testing.assert_allclose(found.covariance, SIGMA, rtol=1e-12)
    assert [p.name for p in path.parent.iterdir()] == ["stats.npz"]
    with np.load(path, allow_pickle=False) as file:  # as EDM and pytorch-fid read them
        np.testing.assert_array_equal(file["mu"], MU)
        assert file["sigma"].shape == (D, D)
    both = found.moments.merge(Moments().update(OTHER))
    assert both.n == 60


def test_another_protocol_is_refused_by_name(path: Path) -> None:
    write(path, Moments().update(FEATURES), protocol="clean", weights=SHA)
    with pytest.raises(RecipeError, match="statistics of protocol `clean`, but the features are of `edm`") as failure:
        read(path, protocol="edm")
    assert "--protocol clean" in failure.value.hint
    assert read(path).protocol == "clean"


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("cifar10_clean_train_32.npz", "clean"),
        ("cifar10_legacy_tensorflow_train_32.npz", "edm"),
        ("ffhq_legacy_pytorch_trainval70k_1024.npz", "legacy-pytorch"),
        ("mine_clean_custom_na.npz", "clean"),
    ],
)
def test_clean_fids_files_name_their_protocol(name: str, protocol: str, tmp_path: Path) -> None:
    np.savez(tmp_path / name, mu=MU, sigma=SIGMA)
    assert read(tmp_path / name, protocol=protocol).protocol == protocol
    for other in {"edm", "clean", "legacy-pytorch", "fd-dinov2"} - {protocol}:
        with pytest.raises(
            RecipeError, match=f"statistics of protocol `{protocol}`, but the features are of `{other}`"
        ):
            read(tmp_path / name, protocol=other)


@pytest.mark.parametrize("name", ["clean.npz", "my_clean_set.npz", "cifar10-32x32.npz"])
def test_other_names_name_nothing(name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / name, mu=MU, sigma=SIGMA)
    assert read(tmp_path / name, protocol="edm").protocol is None


def test_other_weights_are_refused(path: Path) -> None:
    write(path, Moments().update(FEATURES), protocol="edm", weights=SHA)
    with pytest.raises(RecipeError, match=r"made with other weights, sha256 a{64}; the features are made with b{64}"):
        read(path, protocol="edm", weights="b" * 64)


def test_another_width_is_refused(path: Path) -> None:
    np.savez(path, mu=MU, sigma=SIGMA)
    with pytest.raises(RecipeError, match="statistics of 5 features, but the protocol has 2048"):
        read(path, width=2048)


def lopsided() -> np.ndarray:
    return SIGMA + np.triu(np.full((D, D), 1e-3), 1)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no sigma": ({"mu": MU}, "must hold `mu` and `sigma`, has `mu`"),
    "other keys": ({"mean": MU, "cov": SIGMA}, "must hold `mu` and `sigma`, has `mean`, `cov`"),
    "no keys": ({}, "has none"),
    "mu of two axes": ({"mu": MU[None], "sigma": SIGMA}, r"`mu` \(1, 5\) and `sigma` \(5, 5\)"),
    "sigma of one axis": ({"mu": MU, "sigma": SIGMA.diagonal()}, r"`mu` \(5,\) and `sigma` \(5,\)"),
    "sizes": ({"mu": MU[:4], "sigma": SIGMA}, r"`mu` \(4,\) and `sigma` \(5, 5\)"),
    "empty": ({"mu": MU[:0], "sigma": SIGMA[:0, :0]}, r"`mu` \(0,\)"),
    "nan": ({"mu": MU * np.nan, "sigma": SIGMA}, "`mu` holds NaN or infinity"),
    "infinity": ({"mu": MU, "sigma": SIGMA * np.inf}, "`sigma` holds NaN or infinity"),
    "asymmetric": ({"mu": MU, "sigma": lopsided()}, r"not symmetric, by up to 0\.001"),
    "negative": ({"mu": MU, "sigma": -SIGMA}, "negative variances"),
    "text": ({"mu": MU.astype(str), "sigma": SIGMA}, "`mu` is of type <U32, not numbers"),
    "complex": ({"mu": MU, "sigma": SIGMA + 0j}, "`sigma` is of type complex128"),
    "n": ({"mu": MU, "sigma": SIGMA, "n": 1.5}, "`n` is 1.5"),
    "many n": ({"mu": MU, "sigma": SIGMA, "n": [3, 4]}, "`n` is .3, 4."),
    "one feature": ({"feats": FEATURES[:1]}, r"`feats` has shape \(1, 5\)"),
    "feats with nan": ({"feats": FEATURES * np.nan}, "`feats` holds NaN"),
    "pickle": ({"mu": np.array([object()]), "sigma": SIGMA}, "cannot be read"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_statistics(kind: str, path: Path) -> None:
    content, message = BROKEN[kind]
    np.savez(path, **content)
    with pytest.raises(GentkError, match=message) as failure:
        read(path)
    assert str(path) in str(failure.value)
    assert failure.value.hint


def cut(path: Path) -> None:
    np.savez(path, mu=MU, sigma=SIGMA)
    path.write_bytes(path.read_bytes()[:-200])


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, MU)


@pytest.mark.parametrize("make", [lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"text"), cut, one_array])
def test_what_is_no_npz(make: Callable[[Path], Any], path: Path) -> None:
    make(path)
    with pytest.raises(GentkError, match=r"cannot be read|is one array"):
        read(path)


def test_damaged_inside(path: Path) -> None:
    np.savez_compressed(path, mu=MU, sigma=SIGMA)
    content = bytearray(path.read_bytes())
    content[60:120] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(GentkError, match="cannot be read"):
        read(path)


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(MissingAsset, match="no such statistics file"):
        read(tmp_path / "absent.npz")


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunFailed, match="cannot be written"):
        write(tmp_path / "file" / "stats.npz", Moments().update(FEATURES), protocol="edm", weights=SHA)
    with pytest.raises(RunFailed, match="at least 2 samples"):
        write(tmp_path / "stats.npz", Moments().update(FEATURES[:1]), protocol="edm", weights=SHA)
