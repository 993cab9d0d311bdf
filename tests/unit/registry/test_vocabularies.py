"""That two vocabularies are one is found as an engine finds it, whatever their files look like."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from apps.registry.vocabularies import vocabulary_sha256
from engine_service.tokenizer import load_tokenizer

BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "é": 2}, "merges": []}
END = {
    "id": 3, "content": "<end>", "single_word": False, "lstrip": False, "rstrip": False,
    "normalized": False, "special": True,
}  # fmt: skip
SAID: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "plain": (BPE, []),
    "in another order": ({**BPE, "vocab": {"é": 2, "b": 1, "a": 0}}, []),
    "with merges": ({**BPE, "vocab": {"a": 0, "b": 1, "é": 2, "ab": 3}, "merges": ["a b"]}, []),
    "numbered otherwise": ({**BPE, "vocab": {"b": 0, "a": 1, "é": 2}}, []),
    "with an end": (BPE, [END]),
    "with another end": (BPE, [{**END, "content": "<|end|>"}]),
    "with the end in it": ({**BPE, "vocab": {**BPE["vocab"], "<end>": 3}}, [END]),  # type: ignore[dict-item]
    "of words": (
        {"type": "WordPiece", "vocab": {"a": 0, "b": 1, "é": 2}, "unk_token": "a",
         "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}, [],
    ),
    "with scores": (
        {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0], ["é", -2.0]], "unk_id": 0}, [],
    ),
    "with scores and an end": (
        {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0], ["é", -2.0]], "unk_id": 0}, [END],
    ),
}  # fmt: skip


def written(directory: Path, name: str) -> Path:
    model, added = SAID[name]
    directory.mkdir()
    said = {"version": "1.0", "model": model, "added_tokens": added}
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        said[part] = None
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(said, indent=len(name) % 3, ensure_ascii=len(name) % 2 == 0))
    return path


def test_they_are_one_where_an_engine_has_one(tmp_path: Path) -> None:
    n_equal = 0
    for number, (left, right) in enumerate(itertools.combinations_with_replacement(SAID, 2)):
        (tmp_path / str(number)).mkdir()
        paths = [
            written(tmp_path / str(number) / side, name)
            for side, name in (("left", left), ("right", right))
        ]
        ours, theirs = map(vocabulary_sha256, paths)
        of_engine = [load_tokenizer(path.parent).get_vocab() for path in paths]
        assert len(ours) == 64
        assert (ours == theirs) == (of_engine[0] == of_engine[1]), (left, right)
        n_equal += ours == theirs
    assert n_equal == 19


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"model": {}}', '{"model": {"vocab": 7}}', '{"model": {"vocab": {}}}',
     '{"model": {"vocab": [1]}}', '{"model": {"vocab": {"a": 0}}, "added_tokens": [{}]}',
     "[" * 100_000],
)  # fmt: skip
def test_what_says_none_has_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    assert vocabulary_sha256(path) == ""
    path.write_text(text)
    assert vocabulary_sha256(path) == ""


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "plain")
    first = vocabulary_sha256(path)
    other = written(tmp_path / "b", "numbered otherwise")
    other.rename(path)
    assert vocabulary_sha256(path) not in ("", first)


def test_one_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "plain")
    with path.open("ab") as file:
        file.truncate((128 << 20) + 1)
    assert vocabulary_sha256(path) == ""
