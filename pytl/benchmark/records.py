"""What is kept of a run; the JSON file holds these fields under these names."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from pytl.benchmark.allocations import Allocations
from pytl.benchmark.machine import Machine
from pytl.benchmark.timing import Spread


@dataclass(frozen=True)
class Measurement:
    name: str
    words: str
    milliseconds: Spread
    bytes_per_element: int | None
    """A parameter is an element of the optimizers'. None, as the two below, where bytes say nothing."""
    gigabytes_per_second: float | None
    """Of these bytes, at the median."""
    share_of_copy_rate: float | None
    cores: float
    """CPU time over wall time; waiting busily counts."""
    first_step_seconds: float
    """With what is made once: moments, plans, compiled code."""
    allocations: Allocations | None
    """Of one later step of pytl's; None for others."""


@dataclass(frozen=True)
class DeviceMeasurement(Measurement):
    """On a GPU the times above are the device's, and ``cores`` is CPU time over the longer of both."""

    host_microseconds: Spread
    """Until the host has handed over a step, with the device idle before."""


@dataclass(frozen=True)
class Verdict:
    target: str
    found: str
    met: bool
    excess: float
    """How far beyond the limit, as a share of it; 0 where met."""


@dataclass(frozen=True)
class Comparison(ABC):
    case: str
    words: str
    dtype: str
    sets: int
    """Sets of data stepped on in turn, of each contender."""
    pairs: int
    ours: Measurement
    rival: Measurement
    copy_gigabytes_per_second: Spread
    """Of 256 MiB (on a GPU 1 GiB) by ``Tensor.copy_``, read and written, with the same threads just before."""
    ratio: Spread
    """Our time over the rival's, pair by pair."""
    disagreement: float | None
    """None where the rival computes less, or where there is no memory for both at once."""
    verdict: Verdict | None

    @property
    @abstractmethod
    def size(self) -> str:
        """Of one set, in words."""


@dataclass(frozen=True)
class OptimizerComparison(Comparison):
    tensors: int
    parameters: int

    @property
    def size(self) -> str:
        """``161 tensors, 25.56 M parameters, float32``."""
        tensors = f"{self.tensors:,} tensor{'s' * (self.tensors > 1)}"
        return f"{tensors}, {counted(self.parameters)} parameters, {self.dtype}"


@dataclass(frozen=True)
class FeatureComparison(Comparison):
    shape: tuple[int, ...]
    """Of the features, or of a batch of images."""
    elements: int

    @property
    def size(self) -> str:
        """``12.04 M elements, float32``."""
        return f"{counted(self.elements)} elements, {self.dtype}"


def counted(many: int) -> str:
    return f"{many / 1e6:.4g} M" if many >= 1e5 else f"{many:,}"


@dataclass(frozen=True)
class NotTimed:
    case: str
    words: str
    ours: str
    rival: str
    reason: str
    is_failure: bool
    """A disagreement or a fault; else there was no means or no time to time it here."""


@dataclass(frozen=True)
class Peak:
    name: str
    words: str
    bytes: int
    """The most that a training step holds at once, beyond weights, moments and batches."""
    excess: int
    """Beyond the plain step's and the source's features; negative where they are not all held at the peak."""


@dataclass(frozen=True)
class Memory:
    case: str
    words: str
    plain_bytes: int
    """The plain step's peak."""
    weights_bytes: int
    """Of the network that is trained."""
    source_weights_bytes: int
    """Of the source network, which lies ready and is in no peak."""
    source_features_bytes: int
    """Of a batch at the layers that are compared."""
    peaks: list[Peak]


@dataclass(frozen=True)
class Run:
    machine: Machine
    comparisons: list[Comparison] = field(default_factory=list)
    not_timed: list[NotTimed] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
