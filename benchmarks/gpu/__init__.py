"""The engine on a GPU: its tests, its speed beside others', and how far from the machine's own."""
