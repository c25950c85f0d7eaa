"""GroupQueryAttention by the Metal shaders, as a host would dispatch them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from attention_models import AttentionCase
from metal_emulation import Emulation, structures

from bitnet_onnx.attention import Attended


@dataclass(frozen=True, slots=True)
class Plan:
    """How the work is cut.

    Attributes:
        rows: query rows of one threadgroup.
        split: chunks of keys are threadgroups of their own, merged by a second kernel.
        simdgroups: of one threadgroup.
        in_place: the present cache is the past one, with room for the new rows.
    """

    rows: int = 4
    split: bool = False
    simdgroups: int = 4
    in_place: bool = False


def attend(device: Emulation, case: AttentionCase, plan: Plan) -> Attended:
    """What the operator gives for the case."""
    at, dim, batch, sequence = case.attributes, case.head_dim, len(case.totals), case.sequence
    heads, kv_heads = at.num_heads, at.kv_num_heads
    tensors, group, rotary = case.tensors, heads // kv_heads, case.rotary
    cache_type = tensors["past_key"].dtype
    present_length = max(case.past, *case.totals)
    widths = (heads * dim, kv_heads * dim, kv_heads * dim)
    arguments = structures()["AttentionArguments"](
        batch=batch,
        sequence=sequence,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        rotary_dim=0 if rotary is None else 2 * rotary.cosine.shape[1],
        cache_length=present_length,
        past_length=case.past,
        query_stride=widths[0] if case.separate else sum(widths),
        key_stride=widths[1] if case.separate else sum(widths),
        value_stride=widths[2] if case.separate else sum(widths),
        window=0 if at.local_window_size < 0 else at.local_window_size,
        chunks=-(-max(case.totals) // 128),
        scale=np.float32(1) / np.sqrt(np.float32(dim)) if at.scale is None else at.scale,
        softcap=at.softcap,
    )
    settings = {
        "Simdgroups": plan.simdgroups,
        "Int8Cache": case.int8,
        "Rotary": 0 if rotary is None else 2 if at.rotary_interleaved else 1,
        "QueryLengths": case.counts is not None,
        "Rows": plan.rows,
        "Split": plan.split,
    }
    # Present rows that nobody writes keep this.
    fill = 77 if case.int8 else np.nan
    present = [np.full((batch, kv_heads, present_length, dim), fill, cache_type) for _ in range(2)]
    totals = np.array(case.totals, np.int32) - np.int32(1)
    shared = {"Totals": totals}
    if case.counts is not None:
        shared["QueryLengths"] = np.array(case.counts, np.int32)

    def named(prefix: str) -> dict[str, np.ndarray]:
        return {f"{prefix}{name}": array for name, array in shared.items()}

    blocks = settings["Simdgroups"] * 32
    if plan.in_place:
        for mine, name in zip(present, ("past_key", "past_value"), strict=True):
            mine[:, :, : case.past] = tensors[name]
    else:
        # One element more than there may be, where there is none.
        past = [tensors[name] if tensors[name].size else np.zeros(1, cache_type) for name in ("past_key", "past_value")]
        buffers = named("kCopy") | dict(
            zip(("kCopyPastKey", "kCopyPastValue", "kCopyKeyCache", "kCopyValueCache"), (*past, *present), strict=True)
        )
        grid = -(-present_length * dim // blocks), batch * kv_heads, 1
        outputs = ("kCopyKeyCache", "kCopyValueCache")
        device.run("attention_copy", arguments, settings, buffers, grid, outputs)

    rotated = np.empty((batch, kv_heads, sequence * group, dim), np.float32)
    output = np.full((batch, sequence, heads * dim), np.nan, np.float32)
    if case.separate:
        parts = tensors["query"], tensors["key"], tensors["value"]
    else:
        packed = np.concatenate([tensors["query"], tensors["key"], tensors["value"]], axis=-1)
        parts = (packed, 0), (packed, widths[0]), (packed, widths[0] + widths[1])
    buffers = named("kPrepare") | dict(zip(("kPrepareQuery", "kPrepareKey", "kPrepareValue"), parts, strict=True))
    buffers |= {
        "kPrepareKeyCache": present[0],
        "kPrepareValueCache": present[1],
        "kPrepareRotated": rotated,
        "kPrepareOutput": output,
    }
    if rotary is not None:
        buffers |= {"kPrepareCosine": rotary.cosine, "kPrepareSine": rotary.sine}
    if case.int8:
        buffers |= {"kPrepareKeyScale": tensors["key_scale"], "kPrepareValueScale": tensors["value_scale"]}
    outputs = ("kPrepareKeyCache", "kPrepareValueCache", "kPrepareRotated", "kPrepareOutput")
    grid = -(-(heads + 2 * kv_heads) * dim // blocks), sequence, batch
    device.run("attention_prepare", arguments, settings, buffers, grid, outputs, keep=outputs)

    x, y = -(-sequence * group // plan.rows), batch * kv_heads
    buffers = named("kAttention") | {
        "kAttentionRotated": rotated,
        "kAttentionKeyCache": present[0],
        "kAttentionValueCache": present[1],
    }
    scale = {"kAttentionValueScale": tensors["value_scale"]} if case.int8 else {}
    if not plan.split:
        buffers["kAttentionOutput"] = output
        device.run(
            "attention", arguments, settings, buffers | scale, (x, y, 1), ("kAttentionOutput",), ("kAttentionOutput",)
        )
        return Attended(output, *present)
    partials = np.empty((batch, kv_heads, sequence * group, arguments.chunks, dim + 2), np.float32)
    buffers["kAttentionPartials"] = partials
    grid = x, y, arguments.chunks
    device.run("attention", arguments, settings, buffers | scale, grid, ("kAttentionPartials",))
    buffers = named("kAttention") | scale | {"kAttentionPartials": partials, "kAttentionOutput": output}
    device.run("attention_merge", arguments, settings, buffers, (x, y, 1), ("kAttentionOutput",), ("kAttentionOutput",))
    return Attended(output, *present)
