"""A cached source: the source's features bit for bit, computed once, bounded, and of no other data or network."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import assert_same
from safetensors.torch import save_file
from torch import Tensor, nn

from pytl.features import Source
from pytl.features.cache import CachedSource
from pytl.features.digest import network_digest, sample_digests

LAYERS = ["conv", "linear"]
SAMPLES = 12
EACH = 4 * (2 * 16 + 3) + 16
"""Bytes of a sample of `Network`: float32 conv [2, 4, 4] and linear [3], its id and digest."""


class Network(nn.Module):
    """Of small integers, so that float32 is exact and a batch's composition cannot change a bit."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.linear = nn.Linear(32, 3)
        self.scale = nn.Buffer(torch.tensor(2.0))
        for place, weights in enumerate(self.parameters()):
            weights.data = whole_numbers(weights.shape, seed * 10 + place)
        self.batches: list[int] = []

    def forward(self, images: Tensor, add: Tensor | None = None, *, negative: bool = False) -> Tensor:
        self.batches.append(len(images))
        out = self.linear(self.conv(images).relu().flatten(1)) * self.scale
        return (-out if negative else out) + (0 if add is None else add)


def whole_numbers(shape: Any, seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator, device="cpu").float().to(torch.get_default_device())


@pytest.fixture
def images() -> Tensor:
    return whole_numbers((SAMPLES, 1, 4, 4), 77)


@pytest.fixture(params=["memory", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "features" if request.param == "disk" else None


def cached(folder: Path | None = None, network: nn.Module | None = None, **options: Any) -> CachedSource:
    source = CachedSource(network or Network(), folder=folder, **options)
    source.watch(LAYERS)
    return source


def plain(images: Tensor, network: nn.Module | None = None, **keywords: Any) -> dict[str, Tensor]:
    source = Source(network or Network())
    source.watch(LAYERS)
    return source(images, **keywords)


def filled(folder: Path, images: Tensor, **options: Any) -> None:
    source = cached(folder, **options)
    source(images, ids=range(len(images)))
    source.close()


def forwards(source: Source) -> list[int]:
    """The batch sizes that went through the network."""
    return source.network.batches  # type: ignore[return-value]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What comes back:


@pytest.mark.parametrize("shard_bytes", [1, 3 * EACH + 5, 1 << 20])
def test_features_are_the_sources_in_every_batch(folder: Path | None, images: Tensor, shard_bytes: int) -> None:
    source = cached(folder, shard_bytes=shard_bytes)
    for ids in ([0, 1, 2], [5, 1, 9, 0], [3, 3, 1, 7, 3], [4], [11, 10, 8, 6, 2], [*range(12)], [7, 7], [9, 2, 0]):
        assert_same(source(images[ids], ids=torch.tensor(ids)), plain(images[ids]))
    assert forwards(source) == [3, 2, 2, 1, 4]
    assert (source.kept, source.bytes) == (SAMPLES, SAMPLES * EACH)


@pytest.mark.parametrize("shard_bytes", [1, 5 * EACH, 1 << 20])
def test_a_later_run_computes_nothing(tmp_path: Path, images: Tensor, shard_bytes: int) -> None:
    filled(tmp_path, images, shard_bytes=shard_bytes)
    source = cached(tmp_path)
    ids = [3, 0, 11, 3]
    assert_same(source(images[ids], ids=ids), plain(images[ids]))
    assert forwards(source) == []
    assert (source.kept, source.bytes) == (SAMPLES, SAMPLES * EACH)


def test_a_later_run_keeps_what_is_new(tmp_path: Path, images: Tensor) -> None:
    filled(tmp_path, images[:5])
    source = cached(tmp_path)
    assert_same(source(images, ids=range(SAMPLES)), plain(images))
    assert forwards(source) == [SAMPLES - 5]
    source.close()
    assert cached(tmp_path).kept == SAMPLES


def test_a_shared_source_computes_a_batch_once_even_if_nothing_is_kept(images: Tensor) -> None:
    source = CachedSource(Network(), max_bytes=0)
    source.watch(["conv"])
    source.watch(["linear"])
    first = source(images, ids=range(SAMPLES))
    assert source(images, ids=range(SAMPLES)) is first
    images += 1
    assert_same(source(images, ids=range(SAMPLES)), plain(images))
    assert forwards(source) == [SAMPLES] * 2


def test_what_is_returned_may_be_changed(folder: Path | None, images: Tensor) -> None:
    source = cached(folder)
    for _ in range(3):
        for feature in source(images.clone(), ids=range(SAMPLES)).values():
            feature.zero_()
    assert_same(source(images.clone(), ids=range(SAMPLES)), plain(images))


def test_unusual_values_are_kept_as_they_are(tmp_path: Path, images: Tensor) -> None:
    class Bits(nn.Module):
        def forward(self, bits: Tensor) -> Tensor:
            return bits.view(torch.float32)

    nan, other_nan, minus_zero, infinity, subnormal = 0x7FC00000, -0x3FFFFF, -0x80000000, 0x7F800000, 1
    bits = torch.tensor([[nan, other_nan], [minus_zero, infinity], [subnormal, 0]], dtype=torch.int32)
    for _ in range(2):
        source = CachedSource(Bits(), folder=tmp_path)
        source.watch([""])
        for _ in range(2):
            assert torch.equal(source(bits.clone(), ids=[0, 1, 2])[""].view(torch.int32), bits)
        source.close()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_are_rounded_alike_in_all_uses(folder: Path | None, images: Tensor, dtype: torch.dtype) -> None:
    images = images + 2**-8  # still exact in float32, and not in the others
    source = cached(folder, dtype=dtype, max_bytes=6 * EACH)
    expected = {layer: feature.to(dtype).float() for layer, feature in plain(images).items()}
    for _ in range(3):
        assert_same(source(images.clone(), ids=range(SAMPLES)), expected)
    assert_same(source(images[1:4], ids=[1, 2, 3]), {layer: feature[1:4] for layer, feature in expected.items()})
    assert not torch.equal(expected["linear"], plain(images)["linear"])
    assert source.bytes == source.kept * (2 * 35 + 16)
    assert forwards(source) == [SAMPLES, SAMPLES - source.kept, SAMPLES - source.kept]


def test_dtype_that_cannot_hold_the_features_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"dtype must hold the features of layer 'conv'; torch.float16 does not"):
        cached(dtype=torch.float16)(images * 1e6, ids=range(SAMPLES))


def test_keywords_have_rows_as_well(folder: Path | None) -> None:
    class Bert(nn.Module):
        calls = 0

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, output_hidden_states: bool
        ) -> dict[str, Tensor]:
            self.calls += 1
            return {"last_hidden_state": (input_ids * attention_mask + position_ids)[..., None].double()}

    words = torch.arange(20).view(5, 4)
    batch = {"input_ids": words, "attention_mask": words % 3 > 0, "position_ids": torch.arange(4)[None]}
    expected = (words * batch["attention_mask"] + torch.arange(4))[..., None].double()
    source = CachedSource(bert := Bert(), folder=folder)
    source.watch([""])
    for ids in ([1, 3], [4], [0, 3, 1], [2, 2, 4], [0, 1, 2, 3, 4]):
        some = {name: tensor[ids] if len(tensor) == 5 else tensor for name, tensor in batch.items()}
        assert_same(source(**some, output_hidden_states=True, ids=ids), {"": expected[ids]})
    assert bert.calls == 4
    with pytest.raises(ValueError, match="ids 0 were kept with other inputs"):
        source(words[:1], words[:1] % 3 > 1, batch["position_ids"], True, ids=[0])
    ones = {name: torch.ones(1, 4, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    with pytest.raises(TypeError, match=r"inputs must be tensors or plain values.*list for 'position_ids'"):
        source(**ones, position_ids=[0, 1], output_hidden_states=True, ids=[9])


def test_samples_of_several_shapes_are_kept_apart(folder: Path | None) -> None:
    batches = {size: whole_numbers((3, 1, size, size), size) for size in (3, 4, 5)}

    def pooled() -> nn.Module:
        network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
        network[0].weight.data = whole_numbers((2, 1, 1, 1), 1)
        return network

    source = CachedSource(pooled(), folder=folder, shard_bytes=800)
    source.watch(["0"])
    for _, (size, batch) in itertools.product(range(2), batches.items()):
        assert_same(source(batch.clone(), ids=range(size * 10, size * 10 + 3)), {"0": pooled()(batch).detach()})
    assert source.kept == 9
    source.close()


def test_features_made_in_inference_mode_serve_training(folder: Path | None, images: Tensor) -> None:
    source = cached(folder)
    with torch.inference_mode():
        source(images[:3], ids=range(3))
    assert_same(source(images, ids=range(SAMPLES)), plain(images))
    weights = torch.ones(3, requires_grad=True)
    (source(images[:2], ids=[0, 1])["linear"] * weights).sum().backward()
    assert forwards(source) == [3, SAMPLES - 3]


# The bound:


def test_beyond_the_bound_nothing_is_kept_and_the_rest_is_computed_each_time(
    folder: Path | None, images: Tensor
) -> None:
    source = cached(folder, max_bytes=7 * EACH + EACH // 2, shard_bytes=2 * EACH)
    for _ in range(3):
        for ids in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]):
            assert_same(source(images[ids], ids=ids), plain(images[ids]))
    assert forwards(source) == [4, 4, 4, *[1, 4] * 2]
    assert (source.kept, source.bytes) == (7, 7 * EACH)
    source.close()
    if folder:
        assert cached(folder, max_bytes=EACH).bytes == 7 * EACH


def test_memory_holds_a_shard_at_most(tmp_path: Path, images: Tensor) -> None:
    source = cached(tmp_path, shard_bytes=3 * EACH)
    on_disk = []
    for sample in range(SAMPLES):
        source(images[[sample]], ids=[sample])
        on_disk.append(len(names(tmp_path)) * 3)
        assert (source.kept - on_disk[-1]) * EACH <= 3 * EACH
    assert on_disk == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_grows_by_no_more_than_shards_while_it_writes(tmp_path: Path) -> None:
    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

    shard, rows = 2 << 20, torch.zeros(16, 1 << 15, device="cpu")  # 2 MiB a batch
    source = CachedSource(nn.Identity(), folder=tmp_path, shard_bytes=shard)
    source.watch([""])
    sizes = []
    for batch in range(33):
        source(rows + batch, ids=range(16 * batch, 16 * batch + 16))
        sizes.append(anonymous())
    assert max(sizes) - sizes[0] < 16 * shard
    assert source.bytes > 32 * shard


# Verification:


def test_other_data_is_refused(folder: Path | None, images: Tensor) -> None:
    source = cached(folder)
    source(images, ids=range(SAMPLES))
    with pytest.raises(ValueError, match=r"ids 0, 1, 2, 3, 4 and 6 more were kept with other inputs.*augmented"):
        source(images.roll(1, 0)[:11], ids=range(11))
    changed = images.clone()
    changed[3, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="ids 3 were kept with other inputs"):
        source(changed, ids=range(SAMPLES))
    assert forwards(source) == [SAMPLES]
    source.close()


def test_other_data_is_refused_by_a_later_run(tmp_path: Path, images: Tensor) -> None:
    filled(tmp_path, images)
    source = cached(tmp_path)
    with pytest.raises(ValueError, match=f"ids 2 were kept with other inputs in folder {tmp_path}"):
        source(images[[1, 3]], ids=[1, 2])
    assert forwards(source) == []


def test_an_id_that_comes_twice_has_one_input(images: Tensor) -> None:
    source = cached()
    with pytest.raises(ValueError, match="ids 5 were kept with other inputs"):
        source(images[:3], ids=[5, 4, 5])
    assert source.kept == 0


def test_changed_keywords_are_refused(folder: Path | None, images: Tensor) -> None:
    source = cached(folder)
    add = torch.tensor(1.0)
    expected = plain(images[:2], add=add)
    assert_same(source(images[:2], add=add, ids=[0, 1]), expected)
    assert_same(source(images[:2], add=add.clone(), ids=[0, 1]), expected)
    for other in ({"add": add + 1}, {}, {"add": add, "negative": True}, {"add": None}):
        with pytest.raises(ValueError, match="ids 0, 1 were kept with other inputs"):
            source(images[:2].clone(), ids=[0, 1], **other)


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_bit_and_its_place_count_in_a_digest(dtype: torch.dtype) -> None:
    raw = torch.zeros(7, dtype=dtype).view(torch.uint8)
    bits = torch.arange(8 * len(raw)) if dtype is not torch.bool else torch.arange(0, 8 * len(raw), 8)
    rows = raw.repeat(len(bits) + 1, 1)
    rows[torch.arange(len(bits)), bits // 8] |= 1 << (bits % 8).to(torch.uint8)
    assert len(set(sample_digests({"x": rows.view(dtype)}, len(rows)).tolist())) == len(rows)
    signs = torch.tensor([[sign >> k & 1 for k in range(7)] for sign in range(128)]).to(dtype)
    assert len(set(sample_digests({"x": signs}, 128).tolist())) == 128
    if dtype.is_floating_point:  # their highest bits only, an even number of them
        assert len(set(sample_digests({"x": 1 - 2 * signs}, 128).tolist())) == 128


def test_permuted_mirrored_and_renamed_inputs_have_other_digests() -> None:
    image = torch.rand(3, 8, 8)
    same_sums = [image, image.flip(0), image.flip(1), image.flip(2), image.transpose(1, 2), image.roll(1, 2), -image]
    shapes = [image.view(1, 3, 64), image.view(1, 192), image.view(1, 3, 8, 8, 1), image.view(torch.int32)[None]]
    digests = [int(sample_digests({"x": x[None]}, 1)) for x in same_sums]
    digests += [int(sample_digests({"x": x}, 1)) for x in shapes]
    digests += [int(sample_digests(x, 1)) for x in ({"y": image[None]}, {"x": image[None], "y": True}, {"x": None}, {})]
    a, b = torch.rand(2, 1, 5)
    digests += [int(sample_digests(x, 1)) for x in ({"x": a, "y": b}, {"x": b, "y": a})]
    assert len(set(digests)) == len(digests)


def test_digests_depend_on_values_only() -> None:
    x = torch.arange(4 * 9, dtype=torch.uint8).view(4, 9)
    expected = sample_digests({"x": x}, 4)
    unaligned = torch.cat([torch.zeros(1, dtype=torch.uint8), x.flatten()])[1:].view(4, 9)
    assert torch.equal(sample_digests({"x": unaligned}, 4), expected)
    assert torch.equal(sample_digests({"x": x.t().contiguous().t()}, 4), expected)
    assert torch.equal(torch.cat([sample_digests({"x": row[None]}, 1) for row in x]), expected)
    even = torch.cat([torch.zeros(1, dtype=torch.uint8), x[:, :8].flatten()])[1:].view(4, 8)
    assert torch.equal(sample_digests({"x": even}, 4), sample_digests({"x": x[:, :8]}, 4))
    long = torch.rand(2, 40_001)
    assert torch.equal(sample_digests({"x": long}, 2)[1:], sample_digests({"x": long[1:]}, 1))
    assert len(sample_digests({"x": torch.zeros(3, 0)}, 3)) == 3


def odd_number(place: int) -> int:
    """splitmix64 (Steele, Lea & Flood 2014), in Python's integers."""
    z = place * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31 | 1


def test_digests_on_the_disk_are_those_of_other_machines_and_versions() -> None:
    size = 160_001  # more words than are added up at a time; 3 bytes are filled in, so that the last one is whole
    row = bytes(place * place % 251 for place in range(size)) + bytes(3)
    words = [int.from_bytes(row[at : at + 4], "little", signed=True) for at in range(0, len(row), 4)]
    flag, image = (
        int.from_bytes(hashlib.sha256(about).digest()[:8], "little")
        for about in (b"flag True", f"image torch.uint8 [1, {size}]".encode())
    )
    expected = flag * 0x9E3779B97F4A7C15 + image + sum(word * odd_number(at + 1) for at, word in enumerate(words))
    found = sample_digests({"image": torch.tensor([*row[:size]], dtype=torch.uint8)[None, None], "flag": True}, 1)
    assert int(found) % 2**64 == expected % 2**64


def test_other_weights_are_refused_before_anything_runs(tmp_path: Path, images: Tensor) -> None:
    filled(tmp_path, images)
    other_buffer, renamed = Network(), nn.Sequential(Network())
    other_buffer.scale += 1
    for network in (Network(seed=1), other_buffer, renamed, Network().double()):
        with pytest.raises(
            ValueError, match=r"another source and is left as it is:\n +network's weights: kept \w+, now"
        ):
            CachedSource(network, folder=tmp_path)
    assert all(p.requires_grad for p in renamed.parameters())


def test_each_bit_of_a_network_and_its_form_count() -> None:
    digests = set()
    for name, value in itertools.product(
        ["a", "b"],
        [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(6), torch.zeros(6, dtype=torch.int32), -torch.zeros(6)],
    ):
        network = nn.Module()
        network.register_buffer(name, value)
        digests.add(network_digest(network))
    assert len(digests) == 10


def test_wrappers_are_not_part_of_the_network(tmp_path: Path, images: Tensor) -> None:
    filled(tmp_path, images)
    parallel = nn.DataParallel(Network())
    assert network_digest(parallel) == network_digest(Network())
    assert cached(tmp_path, parallel).kept == SAMPLES


def test_other_dtype_is_refused(tmp_path: Path, images: Tensor) -> None:
    filled(tmp_path, images)
    with pytest.raises(ValueError, match=r"dtype: kept the network's, now torch.float16"):
        CachedSource(Network(), folder=tmp_path, dtype=torch.float16)


def test_features_under_autocast_do_not_mix_with_others(folder: Path | None, images: Tensor) -> None:
    source = cached(folder)
    source(images[:2], ids=[0, 1])
    with (
        torch.autocast(images.device.type, torch.bfloat16),
        pytest.raises(ValueError, match=r"layer 'conv' must return torch.float32, as kept; got torch.bfloat16"),
    ):
        source(images[:4], ids=[0, 1, 2, 3])
    assert source.kept == 2


def test_missing_layer_is_refused_before_anything_runs(folder: Path | None, images: Tensor) -> None:
    source = CachedSource(Network(), folder=folder)
    source.watch(["conv"])
    source(images, ids=range(SAMPLES))
    if folder:
        source.close()
        source = CachedSource(Network(), folder=folder)
    with pytest.raises(ValueError, match=r"layers must be among those kept in .*, which are conv; got linear"):
        source.watch(["conv", "lin*"])
    source.watch(["con?"])
    assert_same(source(images.clone(), ids=range(SAMPLES)), {"conv": plain(images)["conv"]})


def test_folder_with_more_layers_serves_and_grows(tmp_path: Path, images: Tensor) -> None:
    filled(tmp_path, images[:5])
    source = CachedSource(Network(), folder=tmp_path)
    source.watch(["linear"])
    assert_same(source(images, ids=range(SAMPLES)), plain(images))
    source.close()
    assert cached(tmp_path).kept == SAMPLES


def test_layer_without_the_batch_in_front_is_refused() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.t()

    source = CachedSource(Mean())
    source.watch([""])
    with pytest.raises(ValueError, match=r"layer '' must have the batch first, 3 samples; got \[5, 3\]"):
        source(torch.zeros(3, 5), ids=[0, 1, 2])


IDS = {
    "missing": (None, "ids must name the batch's samples for a cached source"),
    "too few": ([0, 1], r"ids must be as many as the samples; got 2 for inputs of shapes \[\[12, 1, 4, 4\]\]"),
    "fractions": ([0.5] * SAMPLES, "ids must be ints"),
    "bools": ([True] * SAMPLES, "ids must be ints"),
    "two dimensions": ([[0]] * SAMPLES, "ids must be ints"),
    "none": ([], "ids must be ints"),
}


@pytest.mark.parametrize("case", IDS)
def test_wrong_ids_are_named(case: str, images: Tensor) -> None:
    ids, message = IDS[case]
    source = cached()
    with pytest.raises(ValueError, match=message):
        source(images, ids=ids)  # type: ignore[arg-type]
    assert forwards(source) == []


@pytest.mark.parametrize("options", [{"max_bytes": -1}, {"shard_bytes": 0}, {"dtype": torch.int8}])
def test_arguments_out_of_range_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be .*; got"):
        CachedSource(Network(), **options)


# The folder:


def test_kill_leaves_whole_shards(tmp_path: Path, images: Tensor) -> None:
    source = cached(tmp_path, shard_bytes=5 * EACH)
    source(images, ids=range(SAMPLES))
    source = cached(tmp_path)
    assert source.kept == 10
    assert_same(source(images, ids=range(SAMPLES)), plain(images))
    assert forwards(source) == [2]


def test_half_written_file_is_no_shard_and_is_removed_when_old(tmp_path: Path, images: Tensor) -> None:
    filled(tmp_path, images)
    old, new = tmp_path / ".shard-a-00000.safetensors.partial", tmp_path / ".shard-b-00000.safetensors.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert cached(tmp_path).kept == SAMPLES
    assert [path.exists() for path in (old, new)] == [False, True]


def full_disk(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_what_was_kept(
    tmp_path: Path, images: Tensor, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cached(tmp_path, shard_bytes=4 * EACH)
    source(images[:6], ids=range(6))
    with monkeypatch.context() as disk:
        disk.setattr(os, call, full_disk)
        message = f"4 samples are kept whole in the folder.*free space, or give max_bytes={4 * EACH}: No space left"
        with pytest.raises(OSError, match=message) as caught:
            source(images, ids=range(SAMPLES))
        assert caught.value.errno == errno.ENOSPC
        assert len(names(tmp_path)) == 1
        assert_same(source(images[:8], ids=range(8)), plain(images[:8]))
        with pytest.raises(OSError, match="No space left"):
            source.flush()
        assert cached(tmp_path).kept == 4
    assert_same(source(images, ids=range(SAMPLES)), plain(images))
    source.close()
    assert cached(tmp_path).kept == SAMPLES


def test_close_that_finds_the_disk_full_can_be_repeated(
    tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cached(tmp_path)
    source(images, ids=range(SAMPLES))
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="0 samples are kept whole"):
            source.close()
    assert not source.network.conv._forward_hooks
    source.close()
    source.close()
    with pytest.raises(RuntimeError, match="CachedSource is closed"):
        source(images, ids=range(SAMPLES))
    assert cached(tmp_path).kept == SAMPLES


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(3, device="cpu")}, path)


@pytest.mark.parametrize("spoil", [truncated, emptied, foreign])
def test_shard_that_cannot_be_read_is_named(tmp_path: Path, images: Tensor, spoil: Callable[[Path], None]) -> None:
    filled(tmp_path, images, shard_bytes=5 * EACH)
    broken = sorted(tmp_path.iterdir())[1]
    spoil(broken)
    network = Network()
    with pytest.raises(ValueError, match=rf"{broken} must be a .*shard.*delete"):
        CachedSource(network, folder=tmp_path)
    assert all(p.requires_grad for p in network.parameters())
    broken.unlink()
    source = cached(tmp_path)
    assert_same(source(images, ids=range(SAMPLES)), plain(images))
    assert forwards(source) == [5]


def test_other_format_is_refused(tmp_path: Path, images: Tensor) -> None:
    filled(tmp_path, images)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    assert header["__metadata__"]["format version"] == "1"
    path.write_bytes(whole.replace(b'"format version":"1"', b'"format version":"2"'))
    with pytest.raises(ValueError, match="format version: kept 2, now 1"):
        CachedSource(Network(), folder=tmp_path)


def test_two_writers_share_a_folder(tmp_path: Path, images: Tensor) -> None:
    writers = [cached(tmp_path, shard_bytes=2 * EACH) for _ in range(2)]
    for batch in range(2):
        for rank, writer in enumerate(writers):
            ids = list(range(rank * 5 + batch * 3, rank * 5 + batch * 3 + 3))
            assert_same(writer(images[ids], ids=ids), plain(images[ids]))
    for writer in writers:
        writer.close()
    assert len(names(tmp_path)) == 6
    source = cached(tmp_path)
    assert (source.kept, source.bytes) == (11, 12 * EACH)  # 5 is there twice
    assert_same(source(images[:11], ids=range(11)), plain(images[:11]))
    assert forwards(source) == []


@pytest.fixture
def two_writers(tmp_path: Path) -> tuple[CachedSource, CachedSource]:
    return CachedSource(Network(), folder=tmp_path), CachedSource(Network(), folder=tmp_path)


def test_two_data_sets_in_one_folder_are_found_out(
    two_writers: tuple[CachedSource, CachedSource], tmp_path: Path, images: Tensor
) -> None:
    for writer, data in zip(two_writers, (images, images + 1), strict=True):
        writer.watch(LAYERS)
        writer(data[3:4], ids=[3])
        writer.close()
    with pytest.raises(ValueError, match=f"ids 3 were kept with other inputs in folder {tmp_path}"):
        CachedSource(Network(), folder=tmp_path)


def test_two_choices_of_layers_in_one_folder_are_found_out(
    two_writers: tuple[CachedSource, CachedSource], tmp_path: Path, images: Tensor
) -> None:
    for writer, layer in zip(two_writers, LAYERS, strict=True):
        writer.watch([layer])
        writer(images, ids=range(SAMPLES))
        writer.close()
    message = "must hold the same layers in all shards; got conv torch.float32 and linear torch.float32"
    with pytest.raises(ValueError, match=message):
        CachedSource(Network(), folder=tmp_path)


def test_missing_safetensors_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(
        ImportError, match=r'safetensors is needed here and not installed: pip install "pytl\[features\]'
    ):
        CachedSource(Network(), folder=tmp_path)
    CachedSource(Network())
