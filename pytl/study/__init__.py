"""Comparisons of methods: tasks, seeds, statistics, tables, figures and one report."""
