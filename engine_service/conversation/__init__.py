"""What a model's chat template makes of turns and tools, and what its answers mean. Text only."""
