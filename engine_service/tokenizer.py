"""A model directory's tokenizer."""

import os
from pathlib import Path
from typing import Any

from engine_service.errors import ModelError


def load_tokenizer(model_dir: Path) -> Any:
    """Load the tokenizer and chat template of a model directory: local files, no code from it.

    Raises:
        ModelError: the directory has no tokenizer that can be read.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir, local_files_only=True)
        # Its file may ask for either; what is too long is refused here, never cut.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        return tokenizer
    except Exception as error:  # the Rust reader raises nothing narrower
        raise ModelError(f"cannot read the tokenizer in {model_dir}: {error}") from error
