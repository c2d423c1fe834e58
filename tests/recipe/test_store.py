"""Names to files: what is found, what is ambiguous, what is suggested."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import gentk
from gentk.errors import MissingAsset, RecipeError
from gentk.recipe import store

Add = Callable[..., Path]
NO_DEFAULT = "task: distill\n"


def test_the_store_is_in_the_package_or_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gentk"
    package.mkdir()
    monkeypatch.setattr(gentk, "__file__", str(package / "__init__.py"))
    assert store.root() == tmp_path / "recipes"
    (package / "recipes").mkdir()
    assert store.root() == package / "recipes"
    assert store.assets() == package / "assets"


def test_entries_are_sorted_and_carry_their_parts(add: Add) -> None:
    add("train/denoiser/digits")
    path = add()
    add("stray")
    assert [entry.name for entry in store.recipes()] == ["distill/sim/edm-digits", "train/denoiser/digits"]
    assert store.recipes()[0] == store.Entry("distill/sim/edm-digits", path, "distill", "sim", "edm-digits")
    assert store.name(path) == "distill/sim/edm-digits"
    assert store.name(Path("x.yaml")) == "x.yaml"


def test_no_store_is_an_empty_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store, "root", lambda: tmp_path / "absent")
    assert store.recipes() == []


@pytest.mark.parametrize("ref", ["distill/sim/edm-digits", "sim/edm-digits", "edm-digits", "distill/sim", "sim"])
def test_every_way_to_name_a_recipe(add: Add, ref: str) -> None:
    path = add()
    add("distill/sim/edm-cifar10", NO_DEFAULT)
    add("train/denoiser/digits", NO_DEFAULT)
    assert store.find(ref) == path


def test_a_method_with_one_recipe_needs_no_default(add: Add) -> None:
    only = add(text=NO_DEFAULT)
    assert store.find("sim") == only


def test_files_are_found_as_files(add: Add, tmp_path: Path) -> None:
    add()
    for name in ("own.yaml", "plain"):
        Path(name).write_text("x: 1\n")
        assert store.find(name) == Path(name)
    assert store.find(tmp_path / "work" / "plain") == tmp_path / "work" / "plain"


def test_a_name_of_the_store_wins_over_a_file_without_suffix(add: Add) -> None:
    path = add()
    Path("sim").write_text("x: 1\n")
    assert store.find("sim") == path


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("smi", "no recipe `smi`; did you mean `sim`?"),
        ("distill/sim/edm-digit", "no recipe `distill/sim/edm-digit`; did you mean `distill/sim/edm-digits`?"),
        ("zzz", "no recipe `zzz`"),
        ("onw.yaml", "onw.yaml: no such file; did you mean `own.yaml`?"),
        ("no/such/folder/x.yaml", "no/such/folder/x.yaml: no such file"),
        ("folder.yaml", "folder.yaml: not a file"),
        ("digits", "`digits` means several recipes"),
        ("denoiser", "`denoiser` means several recipes"),
        pytest.param("x" * 300, "no recipe `xxx", id="long name"),
        pytest.param("x" * 300 + ".yaml", "xxx", id="long file name"),
    ],
)
def test_what_is_not_found(add: Add, ref: str, message: str) -> None:
    add()
    for name in ("train/denoiser/digits", "train/denoiser/mnist", "train/classifier/digits"):
        add(name, NO_DEFAULT)
    Path("own.yaml").touch()
    Path("folder.yaml").mkdir()
    with pytest.raises(RecipeError) as caught:
        store.find(ref)
    assert str(caught.value).startswith(message)
    assert caught.value.hint


def test_pick_takes_the_subjects_recipe_or_swaps_it_into_the_default(add: Add) -> None:
    usual = add()
    own = add("distill/sim/edm-cifar10", NO_DEFAULT)
    add("distill/sim/broken", "default: [\n")
    assert store.pick("distill", "sim", None) == (usual, False)
    assert store.pick("distill", "sim", "edm-digits") == (usual, False)
    assert store.pick("distill", "sim", "edm-cifar10") == (own, False)
    assert store.pick("distill", "sim", "runs/my-teacher") == (usual, True)
    assert store.pick("distill", "sim", "runs/edm-cifar10") == (own, True)
    assert store.pick("distill", "sim", "/models/edm-cifar10.safetensors") == (own, True)


def test_pick_without_a_default(add: Add) -> None:
    with pytest.raises(RecipeError, match="no recipe ships"):
        store.pick("distill", "sim", None)
    only = add(text=NO_DEFAULT)
    assert store.pick("distill", "sim", None) == (only, False)
    add("distill/sim/other", NO_DEFAULT)
    with pytest.raises(RecipeError, match="no default recipe") as caught:
        store.pick("distill", "sim", "x")
    assert "distill/sim/other" in caught.value.hint


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An assets folder with one model and no imported ones; the test runs in an empty folder beside it."""
    monkeypatch.setenv("GENTK_CACHE", str(tmp_path / "cache"))
    assets, work = tmp_path / "assets", tmp_path / "work"
    assets.mkdir()
    work.mkdir()
    (assets / "edm-digits.safetensors").touch()
    (assets / "README.md").touch()
    monkeypatch.setattr(store, "assets", lambda: assets)
    monkeypatch.chdir(work)
    return assets / "edm-digits.safetensors"


def test_models_by_name_file_and_run(shipped: Path) -> None:
    assert store.models() == {"edm-digits": shipped}
    assert store.model_path("edm-digits") == shipped
    weights = Path("run/export/generator.safetensors")
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert store.model_path("run") == store.model_path(Path("run")) == store.model_path(str(weights)) == weights
    Path("edm-digits").mkdir()
    assert store.model_path("edm-digits") == shipped


def test_imported_models_by_name(shipped: Path) -> None:
    place = store.imported_place("edm-cifar10")
    assert place.parent == store.cache() / "models"
    place.parent.mkdir(parents=True)
    with pytest.raises(MissingAsset, match=f"teacher `edm-cifar10` is not here .{place}.") as absent:
        store.model_path("edm-cifar10")
    said = absent.value.hint
    assert "with a network: `gentk models import edm-cifar10`" in said
    assert "`gentk models import edm-cifar10-32x32-uncond-vp.pkl --as edm --name edm-cifar10`" in said
    with pytest.raises(MissingAsset) as absent:
        store.model_path("rectified-flow-cifar10")
    assert "`gentk models import FILE --as rectified-flow --name rectified-flow-cifar10`" in absent.value.hint
    place.touch()
    store.imported_place("edm-digits").touch()
    assert store.imported() == {"edm-cifar10": place, "edm-digits": store.imported_place("edm-digits")}
    assert store.model_path("edm-cifar10") == place
    assert store.model_path("edm-digits") == shipped, "what ships goes first"
    with pytest.raises(MissingAsset, match="did you mean `edm-cifar10`"):
        store.model_path("edm-cifar")


@pytest.mark.parametrize(
    ("ref", "kind", "message"),
    [
        ("edm-digit", MissingAsset, "no model `edm-digit`; did you mean `edm-digits`?"),
        ("./edm-digits", MissingAsset, "no model `./edm-digits`"),
        ("empty", MissingAsset, "empty: no weights in export/"),
        ("two", RecipeError, "two: the run exported several models"),
        ("weights.pt", RecipeError, "weights.pt: not a safetensors file"),
        pytest.param("x" * 300, MissingAsset, "no model `xxx", id="long name"),
    ],
)
def test_what_is_no_model(shipped: Path, ref: str, kind: type[Exception], message: str) -> None:
    Path("empty").mkdir()
    Path("two/export").mkdir(parents=True)
    for name in ("weights.pt", "two/export/a.safetensors", "two/export/b.safetensors"):
        Path(name).touch()
    with pytest.raises(kind) as caught:
        store.model_path(ref)
    assert str(caught.value).startswith(message)


def test_unreadable_recipes_are_faults_and_not_crashes(tmp_path: Path) -> None:
    binary = tmp_path / "x.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        store.read(binary)
    with pytest.raises(RecipeError, match="no such file"):
        store.read(tmp_path / "y.yaml")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_recipe_without_read_permission(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.touch(0o000)
    with pytest.raises(RecipeError, match="permission denied"):
        store.read(path)


def test_head_reads_what_the_file_itself_says(add: Add, sim: str) -> None:
    assert store.head(add(text=sim))["default"] is True
    assert store.head(add(text="- a\n")) == {}
    with pytest.raises(RecipeError):
        store.head(add(text="a: [\n"))
