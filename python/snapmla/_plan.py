"""plan: who attends to which tokens; made once a step, used by every layer, refilled in place for the next step."""

from __future__ import annotations

import torch

from ._library import eager, python_error

_PLAN = torch.ops.snapmla.plan.default
_EAGER_PLAN = eager(_PLAN)


class Plan:
    """A work list for `decode`, in one int32 tensor on the device of the seq_lens it was made for. Made by `plan`.

    `update(seq_lens)` refills it, without a sync or an allocation and with fixed sizes, so it may stand in a captured
    CUDA graph or in compiled code while the lengths change.

    Attributes:
        data: int32 [4 * max_items + num_workers + 1 + batch + 1], what the ops read and write.
        batch, num_workers, fixed_split_tokens, max_items: sizes, as in include/snapmla/attention.h.
    """

    __slots__ = ("data", "batch", "num_workers", "fixed_split_tokens", "max_items")

    def __init__(self, data, batch, num_workers, fixed_split_tokens, max_items):
        self.data: torch.Tensor = data
        self.batch: int = batch
        self.num_workers: int = num_workers
        self.fixed_split_tokens: int = fixed_split_tokens
        self.max_items: int = max_items

    def update(self, seq_lens: torch.Tensor) -> Plan:
        """Plans for these lengths, in place, on the current stream. seq_lens: int32 [batch], dense, each 0 .. 2^20, and
        with fixed splits at most the max_seq_len the plan was made for. Returns the plan itself.

        Raises:
            ValueError: another dtype, shape or device; on the CPU also a length out of range.
        """
        try:
            op = _PLAN if torch.compiler.is_dynamo_compiling() else _EAGER_PLAN
            op(seq_lens, self.num_workers, self.fixed_split_tokens, self.data)
        except RuntimeError as error:
            raise python_error("plan", error) from None
        return self

    def workspace_bytes(self, s: int, heads: int) -> int:
        """Bytes of scratch that `decode` needs for s query tokens of so many heads. Host only."""
        try:
            return torch.ops.snapmla.decode_workspace_bytes(self.data, self.batch, self.num_workers, s, heads)
        except RuntimeError as error:
            raise python_error("decode", error) from None

    def workspace(self, s: int, heads: int) -> torch.Tensor:
        """New scratch for `decode`: uint8 [workspace_bytes(s, heads)]."""
        return torch.empty(self.workspace_bytes(s, heads), dtype=torch.uint8, device=self.data.device)

    @property
    def work_items(self) -> torch.Tensor:
        """View int32 [max_items, 4]: request, first token, end token, partial. Rows past the last item are arbitrary."""
        return self.data[: 4 * self.max_items].view(self.max_items, 4)

    @property
    def worker_offsets(self) -> torch.Tensor:
        """View int32 [num_workers + 1]: worker w does items [w] .. [w + 1]."""
        return self.data[4 * self.max_items : 4 * self.max_items + self.num_workers + 1]

    @property
    def split_offsets(self) -> torch.Tensor:
        """View int32 [batch + 1]: request b owns partials [b] .. [b + 1]."""
        return self.data[4 * self.max_items + self.num_workers + 1 :]

    def __repr__(self) -> str:
        kind = f"splits of {self.fixed_split_tokens} tokens" if self.fixed_split_tokens else "balanced"
        return f"Plan(batch {self.batch}, {self.num_workers} workers, {kind}, {self.data.device})"


def plan(seq_lens: torch.Tensor, *, rows: int = 0, max_seq_len: int | None = None, num_workers: int = 0,
         fixed_split_tokens: int = 0) -> Plan:
    """Cuts a batch into work items for `decode`: makes a Plan and fills it. One plan serves all layers of a step.

    Balanced (the default): every worker gets about the same number of tokens. With fixed_split_tokens: every request is
    cut each so many tokens, so that a request's result does not depend on the rest of the batch, bit for bit.

    Args:
        seq_lens: int32 [batch], dense; cached tokens of each request, those being decoded included. Batch 1 .. 4096.
        rows: s * heads that the plan will serve, for the number of workers on a GPU; 0: at most 64.
        max_seq_len: an upper bound of every length this plan will see; needed with fixed_split_tokens, where it decides
            the plan's size.
        num_workers: 0 for the device's own number (a GPU: SMs / ceil(rows / 64); the CPU: threads).
        fixed_split_tokens: 0, or a multiple of 64.

    Raises:
        ValueError: a size out of range, or seq_lens of another dtype, shape or device; the core's text.

    Allocates the plan's tensor; reads nothing back from the device. For the next step use Plan.update.
    """
    if max_seq_len is None:
        if fixed_split_tokens:
            raise ValueError("[plan] max_seq_len must be given with fixed_split_tokens: it decides the plan's size")
        max_seq_len = 1 << 20
    try:
        workers, max_items = torch.ops.snapmla.plan_shape(seq_lens, max_seq_len, rows, num_workers, fixed_split_tokens)
    except RuntimeError as error:
        raise python_error("plan", error) from None
    batch = seq_lens.shape[0]
    data = torch.empty(4 * max_items + workers + 1 + batch + 1, dtype=torch.int32, device=seq_lens.device)
    return Plan(data, batch, workers, fixed_split_tokens, max_items).update(seq_lens)
