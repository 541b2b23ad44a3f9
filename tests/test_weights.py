"""The weights that come with the book: whole, as good as their manifests say, and refused when they are not."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import nn

from repro import data, records, weights
from repro.errors import CheckpointError, DataError, UnknownName
from repro.models import get_model
from repro.weights_maker import fit_head

WITH_HEAD = [name for name in weights.names() if weights.PLANS[name].head != "none"]
LIMIT = 25_000_000  # bytes, all files together


def test_all_files_together_stay_small() -> None:
    """Catches float32 left in a file, and large fully connected layers."""
    files = list(weights.weights_dir().iterdir())
    assert {file.stem for file in files} == set(weights.names())
    assert sum(file.stat().st_size for file in files) <= LIMIT
    for file in files:
        if file.suffix == ".safetensors":
            dtypes = {name: t.dtype for name, t in load_file(file).items() if name.startswith(weights.MODEL)}
            assert set(dtypes.values()) <= {torch.float16, torch.int64}


@pytest.mark.parametrize("name", weights.names())
def test_each_has_the_record_of_its_run(name: str) -> None:
    """Catches weights of a run that nobody recorded, and of another state of the recipe."""
    net, manifest = weights.load(name), weights.manifest(name)
    assert net.record is not None
    assert net.record.recipe_digest == manifest.run["recipe_digest"]
    assert net.record.git == manifest.run["git"]
    assert net.record.last.test_error == manifest.run["test_error"]
    assert net.record.recipe in net.source


@pytest.mark.parametrize("name", WITH_HEAD)
def test_the_test_error_is_the_manifests(name: str) -> None:
    """On the first 400 test pictures of the real set: within four standard errors of the error over all. Catches a
    preparation that differs from training's, channels exchanged, and a head of other classes."""
    manifest = weights.manifest(name)
    try:
        found = data.load(*SETS[name], size=None if manifest.size < 100 else manifest.size)
    except DataError as e:
        pytest.skip(f"the real pictures are not here: {e}")
    net, count = weights.load(name), 400
    assert found.classes == net.classes
    with torch.no_grad():
        answers = torch.cat([net.model(net.prepare(chunk)) for chunk in found.images[:count].split(50)]).argmax(1)
    error = (answers != found.labels[:count]).double().mean().item()
    assert net.error is not None
    spread = (net.error * (1 - net.error) / count) ** 0.5
    assert abs(error - net.error) <= 4 * spread + 1e-9


SETS = {
    "lenet5-modern": ("mnist", "test"),
    "alexnet-cifar10-5": ("cifar10", "test"),
    "vgg16-bn-cifar10-5": ("cifar10", "test"),
    "flowers-report": ("flowers", "val"),
}


@pytest.mark.parametrize("name", weights.names())
def test_the_layers_are_those_of_the_net(name: str) -> None:
    """The cut net gives what the same layers give inside the whole net. Catches layers in another order, a cut one
    layer off, and tensors left on the meta device."""
    net, manifest = weights.load(name), weights.manifest(name)
    assert not any(t.is_meta for t in (*net.model.parameters(), *net.model.buffers()))
    assert not any(p.requires_grad for p in net.model.parameters())
    whole = get_model(manifest.model, **manifest.model_options).eval()
    whole.features.load_state_dict(net.model.features.state_dict(), strict=False)
    image = torch.rand(1, *net.model.input_size, generator=torch.Generator().manual_seed(0))
    wanted: dict[str, torch.Tensor] = {}
    last = list(net.model.features.named_children())[-1][0]
    whole.features.get_submodule(last).register_forward_hook(lambda _m, _i, o: wanted.update(maps=o.clone()))
    with torch.no_grad():
        whole(image)
        torch.testing.assert_close(net.model.features(image), wanted["maps"])


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The smallest net's files in a folder of their own."""
    for suffix in (".json", ".safetensors"):
        shutil.copy(weights.weights_dir() / f"lenet5-modern{suffix}", tmp_path)
    return tmp_path


def test_damage_is_named(copied: Path) -> None:
    """Catches a flipped bit, which safetensors passes, a cut file, and one that is missing."""
    file = copied / "lenet5-modern.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], b""):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"lenet5-modern.safetensors: damaged.*git checkout"):
            weights.load("lenet5-modern", folder=copied)
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        weights.load("lenet5-modern", folder=copied)
    file.with_suffix(".json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a manifest of weights"):
        weights.load("lenet5-modern", folder=copied)


def test_weights_of_another_shape_are_named(copied: Path) -> None:
    """Catches a manifest that speaks of another net: the first tensor that does not fit is named, with both shapes."""
    file = copied / "lenet5-modern.json"
    content = json.loads(file.read_text())
    content["model_options"] = {"num_classes": 7}
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"head\.5\.bias: this net has \(7,\), the file \(10,\)"):
        weights.load("lenet5-modern", folder=copied)


def test_unknown_names_get_the_nearest() -> None:
    """Catches a KeyError."""
    with pytest.raises(UnknownName, match="did you mean lenet5-modern"):
        weights.load("lenet5")
    with pytest.raises(UnknownName, match="imagenet"):
        weights.load("lenet5-modern", weights="imgnet")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="no ImageNet net"):
        weights.load("lenet5-modern", weights="imagenet")


def test_imagenet_weights_come_from_torchvisions_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a file made here in the cache's place. Catches a file taken without a look at its digits, layers in another
    order, and the net of one plan in the place of another."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    torch.manual_seed(0)
    made = torchvision.models.alexnet().eval()
    entry = torchvision.models.get_model_weights("alexnet").DEFAULT
    (tmp_path / "checkpoints").mkdir()
    torch.save(made.state_dict(), tmp_path / "checkpoints" / "made.pth")
    digits = hashlib.sha256((tmp_path / "checkpoints" / "made.pth").read_bytes()).hexdigest()[:8]
    good = tmp_path / "checkpoints" / f"alexnet-owt-{digits}.pth"
    (tmp_path / "checkpoints" / "made.pth").rename(good)
    monkeypatch.setattr(type(entry), "url", property(lambda _: f"https://example.invalid/{good.name}"))
    net = weights.load("flowers-report", weights="imagenet")
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(net.model(image), made(image))
    assert len(net.classes) == 1000
    assert net.error == pytest.approx(1 - 0.56522)  # as torchvision states it
    assert "ImageNet" in net.source
    assert net.convolutions == weights.load("flowers-report").convolutions
    assert isinstance(net.model.features.pool5, nn.MaxPool2d)
    net = weights.load("alexnet-cifar10-5", weights="imagenet")
    assert net.convolutions == weights.load("alexnet-cifar10-5").convolutions
    data_ = bytearray(good.read_bytes())
    data_[-100] ^= 1
    good.write_bytes(data_)
    with pytest.raises(CheckpointError, match=f"does not begin with {digits}; remove it"):
        weights.load("flowers-report", weights="imagenet")


def test_the_head_is_a_softmax_regression() -> None:
    """Against scikit-learn's on the same features: nearly the same answers. Catches mean and deviation folded in
    wrongly, and labels that do not follow the order of the pictures."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    centres = 3 * torch.randn(3, 8, generator=generator)
    codes = 5 + (centres[labels] + torch.randn(600, 8, generator=generator)) * torch.linspace(0.1, 10, 8)
    wanted = LogisticRegression(max_iter=1000).fit(codes.numpy(), labels.numpy()).predict(codes.numpy())
    head = nn.Linear(8, 3)
    chosen = fit_head(head, codes.clone(), labels)
    assert chosen["weight_decay"] in map(float, chosen["held_out_errors"])
    agreement = (head(codes).argmax(1) == torch.from_numpy(wanted)).double().mean()
    assert agreement > 0.97


def test_records_folder_is_where_they_lie() -> None:
    """Catches weights looked for beside the package when `$REPRO_RECORDS` names another folder."""
    assert weights.weights_dir().parent == records.records_dir()
