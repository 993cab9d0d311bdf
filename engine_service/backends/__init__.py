"""Engines behind one interface; ``native`` is ours."""
