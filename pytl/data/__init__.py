"""Data sets that need no download: scikit-learn's digits, and folders of images that the user has."""

from pytl.data.task import Task, batches, stratified

__all__ = ["Task", "batches", "stratified"]
