"""Inference that may be looked at at any time: sums of units, comparisons of two arms, mismatch of
their sizes, plans. Numbers in, numbers out: it knows neither models nor where the numbers are from.
"""
