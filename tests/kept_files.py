"""Each kind of file that pytl reads: how a whole one is made, and how it is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import pytl
from pytl import metrics
from pytl.analysis.grid import Grid
from pytl.analysis.trace import read_trace
from pytl.commands.search import _advice
from pytl.features.shards import Folder, Shard
from pytl.regularizers.channels.ledger import Ledger, Sums
from pytl.regularizers.tred.disentangler import Disentangler
from pytl.regularizers.tred.guards import Guards
from pytl.regularizers.tred.split import FeatureSplit
from pytl.study.comparison import Study, _claim
from pytl.study.networks import preparation
from pytl.training import checkpoint
from pytl.transferability import runs
from pytl.weight_files import read_weights

REFUSALS = (ValueError, TypeError, FileNotFoundError, ImportError)
"""What a reader may raise on a file that it cannot use; the text names the file."""

_SOURCE = {"source": "a network"}
_ADDED = {"a": 9, "b": 3}


@dataclass(frozen=True)
class Kept:
    """One kind: its file's name, what writes a whole one (1 and 2 differ), and what reads it."""

    name: str
    make: Callable[[Path, int], Any]
    read: Callable[[Path], Any]

    def made_in(self, folder: Path, version: int = 1) -> Path:
        path = folder / self.name
        self.make(path, version)
        return path


def values(version: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(version))


def weights(version: int) -> dict[str, Tensor]:
    return {"a.weight": values(version, 9, 7), "a.bias": values(version + 9, 9)}


def _checkpoint(path: Path, version: int) -> None:
    history = [{"epoch": 1, "accuracy": 0.5 / version}]
    checkpoint.save(path, {"fingerprint": {"lr": 0.1}, "model": weights(version), "history": history})


def _index(path: Path, version: int) -> None:
    save_file(weights(version), path.parent / "one.safetensors")
    path.write_text(json.dumps({"weight_map": dict.fromkeys(weights(version), "one.safetensors")}))


def _channel_weights(path: Path, version: int) -> None:
    scores = {"a": values(version, 9).double(), "b": values(version, 3).double()}
    pytl.ChannelWeights({layer: row.softmax(0).float() for layer, row in scores.items()}, scores, "exact").save(path)


def _split(path: Path, version: int) -> None:
    guards = Guards(0.9, 0.5, 0.1, 0.9, 0.9, 0.3, 0.2, 10, 5, version)
    torch.manual_seed(version)
    FeatureSplit({"a": Disentangler(5, 3)}, {"a": guards}, "both").save(path)


def _sums(path: Path, version: int) -> None:
    ledger = Ledger(path, _ADDED, _SOURCE)
    rows = {name: values(version, count).double() for name, count in _ADDED.items()}
    ledger.sums = Sums(12, 4 * version, rows)
    ledger._save()


def _shard(path: Path, version: int) -> None:
    features = values(version, 2, 12)
    shard = Shard.empty({"a": features}, {"a": torch.float32}, 2)
    shard.put(torch.tensor([1, 2]), torch.tensor([3, 4]), {"a": features})
    own = path.parent / "written"
    Folder(own, _SOURCE).write(shard)
    next(own.iterdir()).replace(path)
    shutil.rmtree(own)


def _plan(path: Path, version: int) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    pytl.TransferPlan.from_rules(network, head="2", sp_decay=0.1 * version).save(path)


def _metrics(path: Path, version: int) -> None:
    metrics.rewrite(path, [{"step": k, "loss": 0.5 * k, "distance/a": version} for k in range(1, 5)])


def _grid(path: Path) -> Grid:
    objective: Any = SimpleNamespace(value=lambda: 1.0, fingerprint=lambda: "loss")
    return Grid(objective, [("a", [torch.ones(2)])], [0.0, 1.0], [0.0], path)


def _losses(path: Path, version: int) -> None:
    grid = _grid(path)
    grid.losses = {(0, 0): 1.0, (1, 0): 1.5 * version}
    grid._save()


def _study(path: Path, version: int) -> None:
    path.unlink(missing_ok=True)
    _claim(Study(data="digits:classes", methods=("plain",), epochs=version, out=path.parent))


def _run(path: Path, version: int) -> None:
    _study(path, version)
    folder = path.parent / "runs" / "classes" / "plain" / "seed-0"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("start.pt", "checkpoint.pt"):
        torch.save(weights(version), folder / name)


def _advised(path: Path, version: int) -> None:
    path.write_text(json.dumps({"recommendation": {"rules": {"new_blocks": version}}}))


def _preparation(path: Path, version: int) -> None:
    path.write_text(json.dumps({"image_mean": [0.1 * version] * 3, "image_std": [0.2] * 3}))


def _claimed(path: Path) -> None:
    _claim(Study(data="digits:classes", methods=("plain",), epochs=1, out=path.parent, resume=True))


KEPT = {
    "checkpoint": Kept("checkpoint.pt", _checkpoint, checkpoint.load),
    "start .pt": Kept(
        "start.pt", lambda path, version: torch.save(weights(version), path), lambda path: read_weights(path, "start")
    ),
    "start .safetensors": Kept(
        "start.safetensors",
        lambda path, version: save_file(weights(version), path),
        lambda path: read_weights(path, "start"),
    ),
    "index": Kept("model.safetensors.index.json", _index, lambda path: read_weights(path.parent, "start")),
    "channel weights": Kept("channels.safetensors", _channel_weights, pytl.ChannelWeights.load),
    "feature split": Kept("split.safetensors", _split, FeatureSplit.load),
    "channel sums": Kept("sums.safetensors", _sums, lambda path: Ledger(path, _ADDED, _SOURCE).sums),
    "cached features": Kept("shard-0.safetensors", _shard, lambda path: Folder(path.parent, _SOURCE).shards()),
    "plan .yaml": Kept("plan.yaml", _plan, pytl.TransferPlan.load),
    "plan .json": Kept("plan.json", _plan, pytl.TransferPlan.load),
    "metrics": Kept("metrics.jsonl", _metrics, metrics.read),
    "trace": Kept("metrics.jsonl", _metrics, read_trace),
    "losses": Kept("losses.json", _losses, lambda path: _grid(path).losses),
    "study": Kept("study.json", _study, _claimed),
    "run": Kept("study.json", _run, lambda path: runs.find([path.parent])),
    "advice": Kept("advice.json", _advised, lambda path: _advice(path.parent, "task")),
    "preparation": Kept("preprocessor_config.json", _preparation, lambda path: preparation(str(path.parent), 8)),
}


def refusal(act: Callable[[], object], errors: tuple[type[Exception], ...] = REFUSALS) -> str | None:
    """What it says against a file; None where it says nothing."""
    try:
        act()
    except errors as error:
        return str(error)
    return None


def plain(value: Any) -> Any:
    """What a reader returned, as tensors, dicts, lists and plain values."""
    if isinstance(value, nn.Module):
        return value.state_dict()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return plain(vars(value)) if hasattr(value, "__dict__") and not isinstance(value, Tensor) else value


def same(a: Any, b: Any) -> bool:
    """Bit for bit."""
    a, b = plain(a), plain(b)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)
