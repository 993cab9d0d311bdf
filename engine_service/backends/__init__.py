"""Engines behind one interface; ``native`` is ours, ``nanovllm`` drives the nano-vllm package."""
