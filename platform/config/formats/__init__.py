"""Formats of dates and numbers in pages, by language."""
