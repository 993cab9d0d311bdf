"""What the gateway costs: beside its engine (``python -m benchmarks.gateway``), and beside another
gateway (``python -m benchmarks.gateway.litellm``)."""
