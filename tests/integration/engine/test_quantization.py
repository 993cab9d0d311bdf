"""What weights of eight bits may cost in quality, on a real model and a text that is shipped."""

from benchmarks.engine.quantization import TEXT, compare
from tests.compiled import compiled_library
from tests.models import smollm2_dir


def test_int8_agrees_with_bfloat16_and_is_as_little_surprised() -> None:
    compiled_library()
    figures = compare(smollm2_dir(), text=TEXT.read_text())
    print(figures)
    assert float(figures["n_tokens"]) > 1000
    assert float(figures["agreement"]) >= 0.97
    assert abs(float(figures["perplexity_ratio"]) - 1.0) <= 0.01
