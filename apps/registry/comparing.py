"""Two versions side by side: what is said of them, their files, and figures of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from django.template.defaultfilters import filesizeformat

from apps.registry.models import ModelVersion
from apps.registry.types import CompareRow, FileRow, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A measured number of versions, as people read it."""

    label: str
    unit: str
    digits: int = 1

    def text(self, value: float | None) -> str:
        return "-" if value is None else f"{value:,.{self.digits}f} {self.unit}".rstrip()


FIGURES: Final[Mapping[str, Figure]] = {
    "perplexity": Figure(label="Perplexity", unit="", digits=3),
    "n_perplexity_tokens": Figure(label="Perplexity over", unit="tokens", digits=0),
    "ttft_ms": Figure(label="Time to first token", unit="ms"),
    "itl_ms": Figure(label="Inter-token latency", unit="ms", digits=2),
    "tokens_per_s": Figure(label="Tokens a second", unit=""),
    "embedding_size": Figure(label="Numbers in a vector", unit="", digits=0),
    "similar": Figure(label="Cosine of similar texts", unit="", digits=4),
    "dissimilar": Figure(label="Cosine of dissimilar texts", unit="", digits=4),
    "embed_ms": Figure(label="One text", unit="ms"),
    "texts_per_s": Figure(label="Texts a second", unit=""),
    "load_s": Figure(label="Loading", unit="s"),
    "memory_mb": Figure(label="Memory of the engine", unit="MB", digits=0),
}


def facts_compared(left: ModelVersion, right: ModelVersion) -> list[CompareRow]:
    """Return what the catalogue says of both."""
    numbers = [
        _numbers(label, left=getattr(left, name), right=getattr(right, name))
        for label, name in _NUMBERS.items()
    ]
    size = CompareRow(
        label="Size on disk",
        left=filesizeformat(left.size_bytes),
        right=filesizeformat(right.size_bytes),
        ratio=_ratio(left.size_bytes, right.size_bytes),
    )
    return [*(_texts(label, left, right) for label in _TEXTS), *numbers, size]


def figures_compared(*, left: Mapping[str, float], right: Mapping[str, float]) -> list[CompareRow]:
    """Return the figures that either has, in the order of ``FIGURES``."""
    return [
        CompareRow(
            label=figure.label,
            left=figure.text(left.get(name)),
            right=figure.text(right.get(name)),
            ratio=_ratio(left.get(name), right.get(name)),
        )
        for name, figure in FIGURES.items()
        if name in left or name in right
    ]


def files_compared(left: ModelVersion, right: ModelVersion) -> list[FileRow]:
    """Return the files of both manifests, those that differ first."""
    ours, theirs = _files(left), _files(right)
    rows = [
        FileRow(
            name=name,
            left=ours.get(name, ""),
            right=theirs.get(name, ""),
            verdict=_verdict(ours.get(name), theirs.get(name)),
        )
        for name in sorted(ours.keys() | theirs.keys())
    ]
    return sorted(rows, key=lambda row: row.verdict == "same")


_TEXTS: Final[Mapping[str, Callable[[ModelVersion], str]]] = {
    "Stage": lambda version: version.get_stage_display(),
    "Tags": lambda version: ", ".join(version.tag_names) or "-",
    "Architecture": lambda version: version.architecture,
    "Weights": lambda version: version.dtype,
    "License": lambda version: version.license or "-",
    "Source": lambda version: version.source,
    "Made by": lambda version: lineage_text(version) or "-",
}
_NUMBERS: Final = {
    "Parameters": "n_parameters",
    "Context length": "context_length",
    "Vocabulary": "vocab_size",
}


def lineage_text(version: ModelVersion) -> str:
    """Return such as "Quantised from smollm2 v1"; nothing where there is no parent."""
    if version.parent is None:
        return ""
    return f"{version.get_lineage_display()} {version.parent}"


def _texts(label: str, left: ModelVersion, right: ModelVersion) -> CompareRow:
    read = _TEXTS[label]
    return CompareRow(label=label, left=read(left), right=read(right))


def _numbers(label: str, *, left: int, right: int) -> CompareRow:
    return CompareRow(label=label, left=f"{left:,}", right=f"{right:,}", ratio=_ratio(left, right))


def _ratio(left: float | None, right: float | None) -> float | None:
    return None if not left or right is None else right / left


def _files(version: ModelVersion) -> dict[str, str]:
    files = version.manifest.get("files", {})
    return {
        name: f"{filesizeformat(file['size_bytes'])}, {file['sha256'][:12]}"
        for name, file in files.items()
    }


def _verdict(left: str | None, right: str | None) -> Verdict:
    if left is None:
        return "right only"
    if right is None:
        return "left only"
    return "same" if left == right else "differs"
