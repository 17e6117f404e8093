"""Search for a transfer plan: Optuna over how much is transferred, rates, pulls and directions."""

from pytl.trials.problem import Problem, Split
from pytl.trials.search import SearchResult, search
from pytl.trials.space import Candidate, Space
from pytl.trials.storage import StorageError

__all__ = ["Candidate", "Problem", "SearchResult", "Space", "Split", "StorageError", "search"]
