"""Runs compared along four claims about the transferability of representations (arXiv:1909.12031)."""

from pytl.transferability.analyse import Asked, analyse

__all__ = ["Asked", "analyse"]
