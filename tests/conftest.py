from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from oracle import DIRECTIONS, GRANULARITIES, PATHS

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
