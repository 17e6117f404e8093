"""What is kept of a run; the JSON file holds these fields under these names."""

from dataclasses import dataclass

from pytl.benchmark.allocations import Allocations
from pytl.benchmark.timing import Spread


@dataclass(frozen=True)
class Measurement:
    name: str
    words: str
    milliseconds: Spread
    bytes_per_parameter: int
    gigabytes_per_second: float
    """Of these bytes, at the median."""
    share_of_copy_rate: float
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
class Comparison:
    case: str
    words: str
    dtype: str
    tensors: int
    parameters: int
    sets: int
    """Parameter sets stepped on in turn, of each contender."""
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


@dataclass(frozen=True)
class NotTimed:
    case: str
    words: str
    ours: str
    rival: str
    reason: str
    is_failure: bool
    """A disagreement or a fault; else there was no means or no time to time it here."""
