"""Search for a transfer plan: Optuna over how much is transferred, rates, pulls and directions."""

from pytl.search.problem import Problem, Split
from pytl.search.search import SearchResult, search
from pytl.search.space import Candidate, Space
from pytl.search.trials import StorageError

__all__ = ["Candidate", "Problem", "SearchResult", "Space", "Split", "StorageError", "search"]
