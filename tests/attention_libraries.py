"""Doubles of the attention libraries that an engine may find on a GPU: their functions, with their
names of arguments and what they demand of tensors, over plain arithmetic. Nothing of ours is in
their place."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from engine_service.kernels.plain_attention import attend


@dataclass(slots=True, kw_only=True)
class Library:
    """What a double was asked, and how it is to misbehave. skew: times which it answers; fault:
    raised by its kernels, of decoding or of all."""

    skew: float = 1.0
    fault: Exception | None = None
    is_whole_fault: bool = False
    n_decodes: int = 0
    n_prompts: int = 0
    caches: list[Tensor] = field(default_factory=list)
    plans: list[dict[str, Any]] = field(default_factory=list)

    def decode(self, q: Tensor, k: Tensor, v: Tensor, **rows: Any) -> Tensor:
        self.n_decodes += 1
        if self.fault is not None:
            raise self.fault
        return self._attend(q, k, v, starts=torch.arange(len(q) + 1), **rows)

    def prompts(self, q: Tensor, k: Tensor, v: Tensor, **rows: Any) -> Tensor:
        self.n_prompts += 1
        if self.fault is not None and self.is_whole_fault:
            raise self.fault
        return self._attend(q, k, v, **rows)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, **rows: Any) -> Tensor:
        """Compute over pages (n_pages, page_size, n_kv_heads, head_dim)."""
        self.caches += [k, v]
        assert k.stride(-1) == v.stride(-1) == q.stride(-1) == 1
        assert q.dtype in (torch.bfloat16, torch.float16)
        assert q.shape[-1] % 8 == 0
        assert all(stride * q.dtype.itemsize % 16 == 0 for x in (q, k, v) for stride in x.stride()[:-1])  # fmt: skip # noqa: E501
        out = attend(q, k_cache=k, v_cache=v, **rows).view(q.shape)
        return (out.float() * self.skew).to(q.dtype)


def _check_table(table: Tensor, *, lengths: Tensor, n_pages: int) -> None:
    assert table.dtype == lengths.dtype == torch.int32
    assert table.stride(-1) == 1
    assert lengths.is_contiguous()
    # Theirs may read a page that stands behind a row's last, but not one that there is not.
    assert ((table >= 0) & (table < n_pages)).all()


def flash_attention_3(library: Library) -> dict[str, ModuleType]:
    def flash_attn_with_kvcache(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
        *,
        cache_seqlens: Tensor,
        page_table: Tensor,
        cu_seqlens_q: Tensor | None = None,
        max_seqlen_q: int | None = None,
        softmax_scale: float,
        causal: bool,
        num_splits: int = 0,
    ) -> Tensor:
        assert causal
        assert k is None
        assert v is None
        _check_table(page_table, lengths=cache_seqlens, n_pages=len(k_cache))
        rows = {"block_tables": page_table, "context_lens": cache_seqlens, "scale": softmax_scale}
        if cu_seqlens_q is None:
            assert q.shape[:2] == (len(page_table), 1)
            return library.decode(q[:, 0], k_cache, v_cache, **rows).unsqueeze(1)
        _check_starts(cu_seqlens_q, most=max_seqlen_q, n_tokens=len(q))
        return library.prompts(q, k_cache, v_cache, starts=cu_seqlens_q, **rows)

    return {
        "flash_attn_interface": _module(
            "flash_attn_interface", flash_attn_with_kvcache=flash_attn_with_kvcache
        )
    }


def flash_attention_4(library: Library) -> dict[str, ModuleType]:
    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        qv: Tensor | None = None,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        max_seqlen_q: int | None = None,
        *,
        seqused_k: Tensor,
        page_table: Tensor,
        softmax_scale: float,
        causal: bool,
        num_splits: int = 1,
    ) -> tuple[Tensor, Tensor]:
        assert causal
        assert qv is None
        assert cu_seqlens_k is None  # not with a page table
        _check_table(page_table, lengths=seqused_k, n_pages=len(k))
        rows = {"block_tables": page_table, "context_lens": seqused_k, "scale": softmax_scale}
        if cu_seqlens_q is None:
            assert q.shape[:2] == (len(page_table), 1)
            out = library.decode(q[:, 0], k, v, **rows).unsqueeze(1)
        else:
            _check_starts(cu_seqlens_q, most=max_seqlen_q, n_tokens=len(q))
            out = library.prompts(q, k, v, starts=cu_seqlens_q, **rows)
        return out, torch.empty(0)  # the log-sum-exp, which nobody asked for

    return {
        "flash_attn": _module("flash_attn"),
        "flash_attn.cute": _module("flash_attn.cute"),
        "flash_attn.cute.interface": _module(
            "flash_attn.cute.interface", flash_attn_varlen_func=flash_attn_varlen_func
        ),
    }


def flash_attention_2(library: Library) -> dict[str, ModuleType]:
    def flash_attn_with_kvcache(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("it cannot read pages of so few tokens")

    found = _module("flash_attn", flash_attn_with_kvcache=flash_attn_with_kvcache)
    return {"flash_attn": found}


def flashinfer(library: Library) -> dict[str, ModuleType]:
    def trtllm_batch_decode_with_kv_cache(
        query: Tensor,
        kv_cache: tuple[Tensor, Tensor],
        workspace_buffer: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        max_seq_len: int,
        bmm1_scale: float = 1.0,
        bmm2_scale: float = 1.0,
        window_left: int = -1,
        kv_layout: str = "HND",
    ) -> Tensor:
        assert kv_layout == "HND"
        assert (bmm2_scale, window_left) == (1.0, -1)
        assert query.is_contiguous()
        assert not workspace_buffer.any()
        assert int(seq_lens.max()) <= max_seq_len
        _check_table(block_tables, lengths=seq_lens, n_pages=len(kv_cache[0]))
        k, v = _pages(kv_cache)
        return library.decode(
            query, k, v, block_tables=block_tables, context_lens=seq_lens, scale=bmm1_scale
        )

    class BatchPrefillWithPagedKVCacheWrapper:
        def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
            assert kv_layout == "HND"
            self._workspace = float_workspace_buffer
            self._plan: dict[str, Any] = {}

        def plan(
            self,
            qo_indptr: Tensor,
            paged_kv_indptr: Tensor,
            paged_kv_indices: Tensor,
            paged_kv_last_page_len: Tensor,
            num_qo_heads: int,
            num_kv_heads: int,
            head_dim_qk: int,
            page_size: int,
            *,
            causal: bool = False,
            sm_scale: float | None = None,
            q_data_type: torch.dtype,
            kv_data_type: torch.dtype,
        ) -> None:
            assert causal
            numbers = (qo_indptr, paged_kv_indptr, paged_kv_last_page_len)
            assert all(each.dtype == torch.int32 and each.device.type == "cpu" for each in numbers)
            assert paged_kv_indices.dtype == torch.int32
            assert len(paged_kv_indices) == int(paged_kv_indptr[-1])
            assert len(qo_indptr) == len(paged_kv_indptr) == len(paged_kv_last_page_len) + 1
            assert (paged_kv_last_page_len >= 1).all()
            assert (paged_kv_last_page_len <= page_size).all()
            self._plan = {
                "wrapper": id(self),
                "starts": qo_indptr,
                "pages": paged_kv_indptr,
                "indices": paged_kv_indices,
                "last": paged_kv_last_page_len,
                "sizes": (num_qo_heads, num_kv_heads, head_dim_qk, page_size),
                "dtypes": (q_data_type, kv_data_type),
                "scale": sm_scale,
            }
            library.plans.append(self._plan)

        def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
            plan = self._plan
            k, v = _pages(paged_kv_cache)
            page_size = k.shape[1]
            assert plan["sizes"] == (q.shape[1], k.shape[2], q.shape[2], page_size)
            assert plan["dtypes"] == (q.dtype, k.dtype)
            assert len(q) == int(plan["starts"][-1])
            counts = plan["pages"].diff()
            rows = plan["indices"].split(counts.tolist())
            return library.prompts(
                q,
                k,
                v,
                starts=plan["starts"],
                block_tables=torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True),
                context_lens=(counts - 1) * page_size + plan["last"],
                scale=plan["scale"],
            )

    return {
        "flashinfer": _module(
            "flashinfer", BatchPrefillWithPagedKVCacheWrapper=BatchPrefillWithPagedKVCacheWrapper
        ),
        "flashinfer.decode": _module(
            "flashinfer.decode",
            trtllm_batch_decode_with_kv_cache=trtllm_batch_decode_with_kv_cache,
        ),
    }


def install(
    monkeypatch: pytest.MonkeyPatch, *makers: Callable[[Library], dict[str, ModuleType]]
) -> list[Library]:
    """Have ``import`` find these libraries while a test runs; return one double each."""
    libraries = [Library() for _ in makers]
    for maker, library in zip(makers, libraries, strict=True):
        for name, module in maker(library).items():
            monkeypatch.setitem(sys.modules, name, module)
    return libraries


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []
    for key, value in content.items():
        setattr(module, key, value)
    return module


def _pages(kv_cache: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return by token what lies by head, (n_pages, n_kv_heads, page_size, head_dim)."""
    k, v = (cache.transpose(1, 2) for cache in kv_cache)
    return k, v


def _check_starts(starts: Tensor, *, most: int | None, n_tokens: int) -> None:
    assert starts.dtype == torch.int32
    assert starts.is_contiguous()
    assert int(starts[-1]) == n_tokens
    assert most is not None
    assert int(starts.diff().max()) <= most
