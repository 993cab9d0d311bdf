"""Constrained decoding: from a schema or tools to a mask over each next token (llguidance)."""
