"""The tokenizer files of a GGUF model, rebuilt from its metadata.

Only byte-level BPE vocabularies whose pre-tokenizer is known here are taken: a wrong split
gives a model other tokens than it was trained on, silently.
"""

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from engine_service.convert import gguf_metadata
from engine_service.convert.errors import ConversionError
from engine_service.convert.files import json_bytes
from engine_service.convert.gguf_metadata import Metadata

_CONTROL, _USER_DEFINED = 3, 4
_TEMPLATE = "tokenizer.chat_template"
# tokenizer.ggml.pre -> whether every digit is a token of its own before the byte-level split.
_SPLITS_DIGITS = {"smollm": True, "gpt-2": False}
_TOKEN_ROLES = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}


def build_tokenizer_files(metadata: Metadata, *, context_length: int) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja."""
    splits_digits = _known_split(metadata)
    tokens = gguf_metadata.texts(metadata, "tokenizer.ggml.tokens")
    tokenizer = Tokenizer(_bpe(tokens, gguf_metadata.texts(metadata, "tokenizer.ggml.merges")))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if splits_digits
        else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add_special_tokens(tokenizer, tokens=tokens, metadata=metadata)
    _add_bos_processor(tokenizer, tokens=tokens, metadata=metadata)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        **{f"{role}_token": tokens[index] for role, index in _roles(metadata).items()},
    }
    files = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json_bytes(config),
    }
    if _TEMPLATE in metadata:
        files["chat_template.jinja"] = gguf_metadata.text(metadata, _TEMPLATE).encode()
    return files


def special_token_ids(metadata: Metadata) -> dict[str, int | list[int]]:
    """bos, eos and pad ids as config.json names them; a separate end-of-turn token ends too."""
    roles = _roles(metadata)
    if "eos" not in roles:
        raise ConversionError(
            "the model does not say which token ends a text", field=_TOKEN_ROLES["eos"]
        )
    ids: dict[str, int | list[int]] = {
        f"{role}_token_id": index for role, index in roles.items() if role != "unk"
    }
    end_of_turn = _token_id(metadata, "tokenizer.ggml.eot_token_id")
    if end_of_turn is not None and end_of_turn != roles["eos"]:
        ids["eos_token_id"] = [roles["eos"], end_of_turn]
    return ids


def _known_split(metadata: Metadata) -> bool:
    model = gguf_metadata.text(metadata, "tokenizer.ggml.model")
    if model != "gpt2":
        raise ConversionError(
            f"tokenizer {model!r} is not supported in GGUF files ('gpt2' is): "
            "import the Hugging Face directory instead",
            field="tokenizer.ggml.model",
        )
    pre = gguf_metadata.text(metadata, "tokenizer.ggml.pre")
    if pre not in _SPLITS_DIGITS:
        raise ConversionError(
            f"pre-tokenizer {pre!r} is not supported in GGUF files "
            f"({', '.join(_SPLITS_DIGITS)} are): import the Hugging Face directory instead",
            field="tokenizer.ggml.pre",
        )
    if gguf_metadata.flag(metadata, "tokenizer.ggml.add_eos_token"):
        raise ConversionError(
            "a tokenizer that appends the end token is not supported",
            field="tokenizer.ggml.add_eos_token",
        )
    return _SPLITS_DIGITS[pre]


def _bpe(tokens: list[str], merges: list[str]) -> models.BPE:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ConversionError("a token appears twice", field="tokenizer.ggml.tokens")
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not all(part in vocabulary for part in (left, right, left + right)):
            raise ConversionError(
                f"merge {merge!r} uses tokens that are not in the vocabulary",
                field="tokenizer.ggml.merges",
            )
        pairs.append((left, right))
    return models.BPE(vocab=vocabulary, merges=pairs)


def _add_special_tokens(tokenizer: Tokenizer, *, tokens: list[str], metadata: Metadata) -> None:
    kinds = gguf_metadata.numbers(metadata, "tokenizer.ggml.token_type")
    if len(kinds) != len(tokens):
        raise ConversionError(
            f"{len(kinds)} token types for {len(tokens)} tokens",
            field="tokenizer.ggml.token_type",
        )
    for kind, add in (
        (_CONTROL, tokenizer.add_special_tokens),
        (_USER_DEFINED, tokenizer.add_tokens),
    ):
        added = [tokens[index] for index in np.flatnonzero(kinds == kind)]
        if not all(added):
            raise ConversionError("a special token is empty", field="tokenizer.ggml.tokens")
        special = kind == _CONTROL
        add([AddedToken(token, normalized=False, special=special) for token in added])


def _add_bos_processor(tokenizer: Tokenizer, *, tokens: list[str], metadata: Metadata) -> None:
    if not gguf_metadata.flag(metadata, "tokenizer.ggml.add_bos_token"):
        return
    bos = _token_id(metadata, _TOKEN_ROLES["bos"])
    if bos is None:
        raise ConversionError("the beginning token is missing", field=_TOKEN_ROLES["bos"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[tokens[bos], "$A"], special_tokens=[(tokens[bos], bos)]
    )


def _roles(metadata: Metadata) -> dict[str, int]:
    ids = {role: _token_id(metadata, key) for role, key in _TOKEN_ROLES.items()}
    return {role: index for role, index in ids.items() if index is not None}


def _token_id(metadata: Metadata, key: str) -> int | None:
    if key not in metadata:
        return None
    index = gguf_metadata.integer(metadata, key)
    n_tokens = len(gguf_metadata.texts(metadata, "tokenizer.ggml.tokens"))
    if not 0 <= index < n_tokens:
        raise ConversionError(f"{key} is {index}, no id of the vocabulary", field=key)
    return index
