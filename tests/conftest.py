from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from oracle import DIRECTIONS, GRANULARITIES, PATHS
from PIL import Image

import pytl

settings.register_profile("pytl", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("pytl")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where tensors are made: cpu (default) or cuda")


def pytest_configure(config: pytest.Config) -> None:
    if (device := config.getoption("--device")) != "cpu":  # a default device costs each call of torch a look at it
        torch.set_default_device(device)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread() -> None:
    """For tests of many small steps: on a busy machine threads cost more than they bring."""
    torch.set_num_threads(1)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> dict[str, bool]:
    """The flags that choose the compiled core, or plain PyTorch."""
    return PATHS[request.param]


@pytest.fixture(params=DIRECTIONS)
def direction(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=GRANULARITIES)
def granularity(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["SGD", "AdamW"])
def method(request: pytest.FixtureRequest) -> type[torch.optim.Optimizer]:
    return getattr(pytl, request.param)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Dark and light images, one corrupt, beside a module that makes a network."""
    for name, shade in (("dark", 30), ("light", 220)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (10, 12), (shade + index,) * 3).save(tmp_path / "photos" / name / f"{index}.png")
    (tmp_path / "photos" / "dark" / "broken.png").write_bytes(b"\x89PNG nothing")
    (tmp_path / "tiny_models.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU())\n"
        "        self.head = nn.Linear(8, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.body(x))\n"
        "def nothing(num_classes): return None\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"
