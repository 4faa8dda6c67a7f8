import os
import resource
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import CheckpointError, TransientError, UsageError
from pipeline.model import resnet, weights
from pipeline.model.resnet import ResNet

Make = Callable[..., ResNet]


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return set(a) == set(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_safetensors_round_trip_is_exact(small: Make, tmp_path: Path, dtype: torch.dtype) -> None:
    model = small().to(dtype).to(memory_format=torch.channels_last)
    model.bn1.num_batches_tracked += 41
    weights.save(model, tmp_path / "w.safetensors", {"classes": '["a", "b"]'})
    state = weights.load_state(tmp_path / "w.safetensors")
    assert same(state, model.state_dict())
    assert state["conv1.weight"].is_contiguous()
    assert weights.load_metadata(tmp_path / "w.safetensors") == {"classes": '["a", "b"]'}
    fresh = small().to(dtype)
    assert not same(fresh.state_dict(), model.state_dict())
    weights.load_into(fresh, state, "w")
    assert same(fresh.state_dict(), model.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_saved_files_are_as_readable_as_any_other(small: Make, tmp_path: Path) -> None:
    weights.save(small(), tmp_path / "w.safetensors", {})
    (tmp_path / "other").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    weights.save(model, tmp_path / "w.safetensors", {})
    assert same(weights.load_state(tmp_path / "w.safetensors"), model.state_dict())


def test_wrappers_are_taken_off(small: Make, tmp_path: Path, group: None) -> None:
    plain = small()
    wrapped = [
        torch.compile(plain),
        DistributedDataParallel(plain),
        DistributedDataParallel(torch.compile(plain)),
        torch.compile(DistributedDataParallel(plain)),
    ]
    for i, model in enumerate(wrapped):
        assert weights.unwrap(model) is plain
        assert weights.count_parameters(model) == weights.count_parameters(plain)
        weights.save(model, tmp_path / f"{i}.safetensors", {})
        torch.save(model.state_dict(), tmp_path / f"{i}.pt")
        for suffix in ("safetensors", "pt"):
            state = weights.load_state(tmp_path / f"{i}.{suffix}")
            assert same(state, plain.state_dict())
    fresh = small()
    weights.load_into(DistributedDataParallel(torch.compile(fresh)), plain.state_dict(), "w")
    assert same(fresh.state_dict(), plain.state_dict())


def test_a_part_that_is_compiled_keeps_its_name(small: Make, tmp_path: Path) -> None:
    plain, model = small(), small()
    model.layer1 = torch.compile(model.layer1)
    weights.load_into(model, plain.state_dict(), "w")
    weights.save(model, tmp_path / "w.safetensors", {})
    weights.load_into(plain, weights.load_state(tmp_path / "w.safetensors"), "w")


def test_unwrap_leaves_a_submodule_called_module(tmp_path: Path) -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    assert weights.unwrap(model) is model
    weights.save(model, tmp_path / "w.safetensors", {})
    assert set(weights.load_state(tmp_path / "w.safetensors")) == set(model.state_dict())


def test_parameter_counts() -> None:
    with torch.device("meta"):
        assert weights.count_parameters(resnet.resnet18()) == 11_689_512
        assert weights.count_parameters(resnet.resnet50()) == 25_557_032


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s, "best": 0.5}])
def test_torchvision_files_load(tmp_path: Path, suffix: str, wrap: Callable[[dict], object]) -> None:
    theirs, ours = torchvision.models.resnet18(num_classes=4).eval(), resnet.resnet18(num_classes=4).eval()
    torch.save(wrap(theirs.state_dict()), tmp_path / f"w{suffix}")
    weights.load_into(ours, weights.load_state(tmp_path / f"w{suffix}"), "w")
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


def test_old_files_without_batch_counts_load(small: Make) -> None:
    old, new = small(), small()
    weights.load_into(new, {n: t for n, t in old.state_dict().items() if not n.endswith("num_batches_tracked")}, "w")
    assert same(new.state_dict(), old.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"fc.weight": torch.zeros(9, 8), "fc.bias": torch.zeros(9)}, "made for 9 classes, and this model has 3"),
        (lambda s: {n: t for n, t in s.items() if n != "bn1.weight"}, "another model: missing bn1.weight;"),
        (lambda s: s | {"extra": torch.zeros(1)}, "another model: unexpected extra;"),
        (lambda s: s | {"conv1.weight": torch.zeros(4, 1, 3, 3)}, "of another shape conv1.weight (4x1x3x3, here 4x3x3x3);"),
        (lambda s: s | {"fc.bias": torch.tensor(1.0)}, "of another shape fc.bias (scalar, here 3);"),
        (lambda s: s | {"fc.weight": torch.zeros(3, 9)}, "of another shape fc.weight (3x9, here 3x8);"),
        (lambda s: s | {f"layer7.{i}": torch.zeros(1) for i in range(9)}, "layer7.0 layer7.1 layer7.2 and 6 more;"),
        (lambda s: {}, "another model: missing conv1.weight bn1.weight bn1.bias and "),
    ],
)
def test_weights_of_another_network_are_refused_whole(small: Make, change: Callable[[dict], dict], message: str) -> None:
    model, other = small(), small()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        weights.load_into(model, change(other.state_dict()), "some/file.pt")
    text = str(caught.value)
    assert text.startswith("some/file.pt: made for ") and message in text and "\n" not in text
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("second", "message"), [(9, "made for 9 classes, and this model has 3;"), (8, "of another shape a.weight (9x2, here 3x2) ")]
)
def test_networks_with_two_heads_are_understood(second: int, message: str) -> None:
    def heads(a: int, b: int) -> nn.Module:
        return nn.ModuleDict({"a": nn.Linear(2, a), "b": nn.Linear(2, b)})

    with pytest.raises(CheckpointError) as caught:
        weights.load_into(heads(3, 3), heads(9, second).state_dict(), "w")
    assert message in str(caught.value)


def test_presets_that_differ_are_told_apart_in_one_line(small: Make) -> None:
    with pytest.raises(
        CheckpointError, match=r"^w: made for another model: unexpected .* and \d+ more, of another shape"
    ) as caught:
        weights.load_into(small(), resnet.resnet18().state_dict(), "w")
    assert len(str(caught.value)) < 500


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of one network's weights in each format."""
    folder, model = tmp_path_factory.mktemp("weights"), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    weights.save(model, folder / "w.safetensors", {})
    torch.save(model.state_dict(), folder / "w.pt")
    torch.save(model.state_dict(), folder / "w.pth", _use_new_zipfile_serialization=False)
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from([".safetensors", ".pt", ".pth"]), share=st.floats(0, 1, exclude_max=True))
def test_truncated_files_are_refused(files: dict[str, bytes], tmp_path: Path, suffix: str, share: float) -> None:
    path, whole = tmp_path / f"cut{suffix}", files[suffix]
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError) as caught:
        weights.load_state(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from([".safetensors", ".pt", ".pth"]), data=st.binary(max_size=300))
def test_other_bytes_are_refused(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"other{suffix}"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        weights.load_state(path)


class Code:
    """An object that runs code where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("content", [{}, {"a": 1}, [1, 2], torch.zeros(3), {"model": {"a": "b"}}, {1: torch.zeros(1)}])
def test_files_of_other_things_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="holds no weights"):
        weights.load_state(tmp_path / "w.pt")


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    torch.save({"model": Code(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt: .* not a file of weights"):
        weights.load_state(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("none.pt", "No such file"), ("folder.safetensors", "directory"), ("w.onnx", ".pth")]
)
def test_unusable_paths_are_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError) as caught:
        weights.load_state(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and words in str(caught.value)


def test_a_failed_save_leaves_the_old_file(small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    weights.save(small(), path, {"which": "old"})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TransientError, match="No space left on device"):
        weights.save(small(), path, {"which": "new"})
    assert weights.load_metadata(path) == {"which": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_saving_where_no_folder_can_be_is_an_error_that_names_it(small: Make, tmp_path: Path) -> None:
    (tmp_path / "none").touch()
    with pytest.raises(UsageError, match=r"none/w\.safetensors: can't write"):
        weights.save(small(), tmp_path / "none" / "w.safetensors", {})


def bomb(path: Path) -> None:
    """A file of torch.save, compressed as torch does not write it: 64 MB in 64 KB."""
    torch.save({"w": torch.zeros(1 << 24)}, path)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(path.with_suffix(".new"), "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    path.with_suffix(".new").replace(path)


class Bytes:
    def __reduce__(self) -> tuple[object, ...]:
        return bytearray, (1 << 26,)


@pytest.mark.parametrize(
    "make",
    [
        bomb,
        lambda path: torch.save({"w": torch.zeros(1), "x": Bytes()}, path),
        lambda path: torch.save({"w": torch.zeros(1), "x": Bytes()}, path, _use_new_zipfile_serialization=False),
    ],
)
def test_files_that_would_unfold_in_memory_are_not_loaded(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "w.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"w.pt: cut short, damaged or not a file of weights"):
        weights.load_state(tmp_path / "w.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_pipes_and_devices_are_refused_at_once(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(CheckpointError, match=f"{name}{suffix}: a directory, a pipe or a device"):
            weights.load_state(tmp_path / f"{name}{suffix}")


def test_a_flipped_bit_is_noticed(small: Make, tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "w.pt")
    data = bytearray((tmp_path / "w.pt").read_bytes())
    data[data.index(small().state_dict()["bn1.weight"].numpy().tobytes())] ^= 1
    (tmp_path / "w.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        weights.load_state(tmp_path / "w.pt")


def test_of_a_checkpoint_the_averaged_weights_count(small: Make, tmp_path: Path) -> None:
    raw, averaged = small().state_dict(), small().state_dict()
    torch.save({"format": 1, "model": raw, "ema": averaged}, tmp_path / "w.pt")
    assert same(weights.load_state(tmp_path / "w.pt"), averaged)
