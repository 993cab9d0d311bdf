"""Small tokenizers made on the spot: byte-level BPE, and words with byte fallback."""

from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from engine_service.backends.base import ModelInfo

END = "<|im_end|>"
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "naïve café, façade: déjà vu 👍🏽 👨‍👩‍👧‍👦 你好 世界 こんにちは 안녕하세요",
    "你好你好你好 👍👍👍 été été été STOP STOP STOP",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@cache
def byte_level() -> Tokenizer:
    """Bytes and some merges, so that ids end inside characters, as those of real models do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def byte_fallback() -> Tokenizer:
    """Words that carry their space, bytes for every other character, as sentencepiece has it."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefgh", "▁bad", "▁cafe"]
    merges = [("▁", "b"), ("▁b", "a"), ("▁ba", "d"), ("▁", "c"), ("▁c", "a"), ("▁ca", "f")]
    merges.append(("▁caf", "e"))
    words += ["▁b", "▁ba", "▁c", "▁ca", "▁caf"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={word: i for i, word in enumerate(words)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
    return frozenset(key for key, token in added.items() if token.special)


@cache
def chat_tokenizer() -> Any:
    """The byte-level one as ``transformers`` wraps it, with a chat template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), eos_token=END, chat_template=CHAT_TEMPLATE
    )


def model_info(
    *,
    max_model_len: int = 4096,
    max_sequences: int = 64,
    unsupported: frozenset[str] = frozenset(),
    takes_masks: bool = True,
) -> ModelInfo:
    return ModelInfo(
        name="tiny",
        architecture="LlamaForCausalLM",
        dtype="float32",
        device="cpu",
        kernels="none",
        quantization="int8",
        kv_cache_dtype="fp8",
        backend="echo",
        vocab_size=byte_level().get_vocab_size(),
        max_model_len=max_model_len,
        block_size=16,
        n_blocks=1024,
        max_sequences=max_sequences,
        eos_token_ids=frozenset({byte_level().token_to_id(END)}),
        unsupported=unsupported,
        takes_masks=takes_masks,
    )
