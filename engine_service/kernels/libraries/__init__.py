"""Attention of other libraries over our KV pool, each in a file of its own; none of them is needed.

Facts about them were read in their sources: Dao-AILab/flash-attention of 2026-08-15 and
flashinfer-ai/flashinfer of 2026-08-22.
"""
