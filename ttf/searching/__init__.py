"""Searching for the numbers of tokens that suit a model: ``ttf.search``, see docs/search.md."""
