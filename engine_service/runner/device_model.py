"""A decoder on one device: its weights, the KV pool, the block tables, and a step through them.

All that a step needs is in one array of integers (``step_packing``), so that a step can be sent to
other processes, and the part of it that only decodes can be captured in a CUDA graph.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine_service.kernels.device import DeviceKernels, PagedRows, RowsOnHost, SamplingTensors
from engine_service.kernels.paged_attention import Attention
from engine_service.kernels.quantization import Matrix
from engine_service.layers.decoder import Decoder
from engine_service.layers.linear import Linear
from engine_service.runner.few_rows import FewRows
from engine_service.runner.layer_weights import LayerWeights
from engine_service.runner.step_packing import PackedStep, draws_start

Join = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShape:
    """Sizes of a KV pool; n_kv_heads are those of this device."""

    n_layers: int
    n_blocks: int
    block_size: int
    n_kv_heads: int
    head_dim: int

    @property
    def n_numbers_per_block(self) -> int:
        return self.n_layers * 2 * self.block_size * self.n_kv_heads * self.head_dim


class KVPool:
    """One tensor (n_layers, 2, n_blocks, n_kv_heads, block_size, head_dim): what one head has in a
    block lies together, which is what one program of a kernel reads."""

    def __init__(self, shape: PoolShape, *, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.tensor = torch.zeros(
            (
                shape.n_layers,
                2,
                shape.n_blocks,
                shape.n_kv_heads,
                shape.block_size,
                shape.head_dim,
            ),
            dtype=dtype,
            device=device,
        )
        # Not every version of torch indexes numbers of eight bits as such.
        self._bits = self.tensor.view(torch.uint8) if dtype.itemsize == 1 else self.tensor
        by_token = self.tensor.transpose(3, 4)
        self.layers: SequenceOf[tuple[Tensor, Tensor]] = [(kv[0], kv[1]) for kv in by_token]

    def clear(self, blocks: SequenceOf[int]) -> None:
        self._bits[:, :, list(blocks)] = 0

    def copy(self, pairs: SequenceOf[tuple[int, int]]) -> None:
        """Copy the content of blocks; each pair is from and to, none both."""
        if pairs:
            sources, targets = zip(*pairs, strict=True)
            self._bits[:, :, list(targets)] = self._bits[:, :, list(sources)]


class DeviceModel:
    """Takes over the weights of ``model``, which are on the device already.

    last_draws: int32 (max_draws,): the tokens that the last step drew, which the next one may take
    as its input. reduce: adds up what the ranks of a tensor-parallel group hold, after attention
    and after the feed-forward layer; gather: puts the columns of their logits side by side. None
    for a model that is whole. ask_all: how rank 0 of a group that serves gets logits from all of
    it. is_quantized: whether the weights of its products were read in eight bits. attention: by
    default the kernels' own; steps of few rows always have that.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        kernels: DeviceKernels,
        device: torch.device,
        eps: float,
        max_rows: int,
        max_draws: int,
        max_blocks: int,
        reduce: Join | None = None,
        gather: Join | None = None,
        is_quantized: bool = False,
        attention: Attention | None = None,
    ) -> None:
        self.kernels = kernels
        self.attention = attention or Attention.of(kernels)
        self.device = device
        self._eps = eps
        self._reduce = reduce
        self._gather = gather
        self.ask_all: Join | None = None
        self._embedding = model.embedding.weight
        self._norm = model.norm.weight
        self._rotary = model.rotary.table.to(device)
        heads = model.layers[0].attention
        self._n_heads, self._head_dim = heads.n_heads, heads.head_dim
        self._scale = self._head_dim**-0.5
        self._layers: SequenceOf[LayerWeights[Matrix]]
        self._head: Matrix
        self._few_rows: FewRows | None = None
        if is_quantized:
            take = Linear.take_quantized
            self._layers = [LayerWeights.of(layer, take=take) for layer in model.layers]
            self._head = model.head.take_quantized()
        else:
            layers = [LayerWeights.of(layer, take=Linear.take) for layer in model.layers]
            head = model.head.take()
            self._layers, self._head = layers, head
            # The kernels for few rows multiply by tensors alone, and have no place for ``reduce``.
            if reduce is None:
                self._few_rows = FewRows.make(
                    kernels,
                    layers=layers,
                    norm=self._norm,
                    head=head,
                    rotary=self._rotary,
                    eps=eps,
                    n_heads=heads.n_heads,
                    n_kv_heads=heads.n_kv_heads,
                    head_dim=heads.head_dim,
                )
        self.max_rows = max_rows
        self.pool: KVPool | None = None
        # One row more, for what pads a batch.
        self._tables = torch.zeros((max_rows + 1, max_blocks), dtype=torch.int32, device=device)
        self.last_draws = torch.zeros(max_draws, dtype=torch.int32, device=device)
        self._no_top_k = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self._all_of_p = torch.ones(max_rows, device=device)
        self._no_min_p = torch.zeros(max_rows, device=device)

    def update_tables(self, step: PackedStep, *, numbers: Tensor) -> None:
        """Write what changes in the block tables; ``numbers``: the step's, on the device."""
        if step.n_updates:
            part = _sections(step, numbers)
            flat = self._tables.view(-1)
            flat.index_copy_(0, part["update_places"].long(), part["update_blocks"])

    def decode(self, n_rows: int, *, numbers: Tensor) -> Tensor:
        """Compute a step of so many rows that ``is_decode``; return the logits of all, (n_rows,
        vocab) of the model's type. Nothing but ``n_rows`` depends on the host: a graph can hold it.
        """
        token_ids, positions, slots, sources, table_rows, context_lens = (
            numbers[: 6 * n_rows].view(6, n_rows).unbind(0)
        )
        block_size = self._pool.shape.block_size
        self._tables[table_rows.long(), (positions // block_size).long()] = torch.div(
            slots, block_size, rounding_mode="floor"
        ).int()
        rows = PagedRows(
            block_tables=self._tables.index_select(0, table_rows), context_lens=context_lens
        )
        x = self._embed(token_ids, sources=sources, n_single=n_rows)
        if self._few_rows is not None and n_rows <= self._few_rows.max_rows:
            return self._few_rows.logits(
                x,
                positions=positions,
                slots=slots,
                rows=rows,
                caches=self._pool.layers,
                scale=self._scale,
            )

        def attend(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
            return self.attention.decode.decode_attention(
                q, k_cache=k_cache, v_cache=v_cache, rows=rows, scale=self._scale
            )

        x = self._forward(x, positions=positions, slots=slots, attend=attend)
        return self.all_logits(x)

    def decode_and_draw(self, n_rows: int, *, numbers: Tensor) -> Tensor:
        """Do so, and put into ``last_draws`` what is drawn by the numbers and temperatures of the
        step; that means nothing where it does not ``draw_plainly``."""
        logits = self.decode(n_rows, numbers=numbers)
        start = draws_start(n_rows)
        sampling = SamplingTensors(
            temperature=numbers[start + 2 * n_rows : start + 3 * n_rows].view(torch.float32),
            uniform=numbers[start : start + 2 * n_rows].view(torch.float64),
            top_k=self._no_top_k[:n_rows],
            top_p=self._all_of_p[:n_rows],
            min_p=self._no_min_p[:n_rows],
            drawn=True,
        )
        self.last_draws[:n_rows].copy_(self.kernels.sample(logits, sampling=sampling))
        return logits

    def forward(self, step: PackedStep, *, numbers: Tensor) -> Tensor:
        """Compute any step; return the normed (n_logits, hidden) of the tokens whose logits are
        wanted."""
        part = _sections(step, numbers)
        n_single = step.n_single
        block_size = self._pool.shape.block_size
        # Kernels are compiled anew for a width that is no multiple of 16.
        n_columns = -(-step.max_context_len // (16 * block_size)) * 16
        tables = self._tables[:, :n_columns].index_select(0, part["table_rows"])
        context_lens, query_starts = part["context_lens"], part["query_starts"]
        single = PagedRows(block_tables=tables[:n_single], context_lens=context_lens[:n_single])
        several = PagedRows(
            block_tables=tables[n_single:],
            context_lens=context_lens[n_single:],
            query_starts=query_starts[n_single:] - n_single,
            max_query_len=step.max_query_len,
            host=_several_on_host(step),
        )
        x = self._embed(part["token_ids"], sources=part["sources"], n_single=n_single)

        def attend(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
            found = []
            if n_single:
                found.append(
                    self.attention.decode.decode_attention(
                        q[:n_single],
                        k_cache=k_cache,
                        v_cache=v_cache,
                        rows=single,
                        scale=self._scale,
                    )
                )
            if n_single < step.n_rows:
                found.append(
                    self.attention.prefill.prefill_attention(
                        q[n_single:],
                        k_cache=k_cache,
                        v_cache=v_cache,
                        rows=several,
                        scale=self._scale,
                    )
                )
            return found[0] if len(found) == 1 else torch.cat(found)

        x = self._forward(x, positions=part["positions"], slots=part["slots"], attend=attend)
        return x.index_select(0, part["logit_places"])

    def logits(self, normed: Tensor) -> Tensor:
        """Return the logits (n, vocab) of normed states (n, hidden). Before a group serves, all of
        its ranks are to do so at once."""
        return self.all_logits(normed) if self.ask_all is None else self.ask_all(normed)

    def all_logits(self, normed: Tensor) -> Tensor:
        """Do so; all ranks of a group are at it, with the same states."""
        part = self._linear(normed, self._head)
        if self._gather is None:
            return part
        # Behind the vocabulary's last row stands what was padded.
        return self._gather(part)[:, : len(self._embedding)]

    @property
    def hidden_size(self) -> int:
        return self._embedding.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self._embedding.dtype

    @property
    def max_few_rows(self) -> int:
        """Most rows of a step that may not read what others of the step write."""
        return 0 if self._few_rows is None else self._few_rows.max_rows

    @property
    def weights(self) -> SequenceOf[object]:
        """What it computes with that is the same after each step, as ``DeviceMemory`` takes it."""
        return (self._embedding, self._layers, self._norm, self._head, self._rotary)

    @property
    def max_len(self) -> int:
        """Positions that can be rotated."""
        return len(self._rotary)

    @property
    def _pool(self) -> KVPool:
        assert self.pool is not None
        return self.pool

    def _embed(self, token_ids: Tensor, *, sources: Tensor, n_single: int) -> Tensor:
        if n_single:
            single = sources[:n_single]
            drawn = self.last_draws.index_select(0, single.clamp(min=0)).clamp(min=0)
            first = torch.where(single >= 0, drawn, token_ids[:n_single])
            token_ids = (
                first if n_single == len(token_ids) else torch.cat((first, token_ids[n_single:]))
            )
        return functional.embedding(token_ids, self._embedding)

    def _forward(
        self,
        x: Tensor,
        *,
        positions: Tensor,
        slots: Tensor,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        kernels, eps = self.kernels, self._eps
        residual = x
        x = kernels.rms_norm(x, weight=self._layers[0].attention_norm, eps=eps)
        next_norms = [layer.attention_norm for layer in self._layers[1:]] + [self._norm]
        for layer, (k_cache, v_cache), next_norm in zip(
            self._layers, self._pool.layers, next_norms, strict=True
        ):
            q = kernels.rotate_and_store(
                self._linear(x, layer.qkv, layer.qkv_bias).view(len(x), -1, self._head_dim),
                rotary=self._rotary,
                positions=positions,
                slots=slots,
                k_cache=k_cache,
                v_cache=v_cache,
                q_norm=layer.q_norm,
                k_norm=layer.k_norm,
                eps=eps,
            )
            x = self._reduced(self._linear(attend(q, k_cache, v_cache), layer.output))
            x = kernels.add_rms_norm(x, residual=residual, weight=layer.feed_forward_norm, eps=eps)
            inner = kernels.swiglu(self._linear(x, layer.gate_up))
            x = self._reduced(self._linear(inner, layer.down))
            x = kernels.add_rms_norm(x, residual=residual, weight=next_norm, eps=eps)
        return x

    def _linear(self, x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Tensor):
            return functional.linear(x, weight, bias)
        return self.kernels.quantized_linear(x, weight=weight, bias=bias)

    def _reduced(self, x: Tensor) -> Tensor:
        return x if self._reduce is None else self._reduce(x)


def _several_on_host(step: PackedStep) -> RowsOnHost:
    """Return the numbers of the rows of several tokens, counted from the first of these."""
    parts, n_single = step.sections(), step.n_single

    def of_several(name: str) -> SequenceOf[int]:
        start, length = parts[name]
        return step.numbers[start + n_single : start + length]

    return RowsOnHost(
        context_lens=of_several("context_lens"),
        query_starts=[place - n_single for place in of_several("query_starts")],
    )


def _sections(step: PackedStep, numbers: Tensor) -> dict[str, Tensor]:
    return {
        name: numbers[start : start + length] for name, (start, length) in step.sections().items()
    }
