"""Sums of pruned vectors as machine code for the CPU; needs numba (extra ``fast``).

``sums.TensorSum`` has the same sum in torch, for GPUs and where numba is missing. The bits are the
same: each product and each sum is rounded to float32, vector after vector.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WHOLE, BITS, OFFSETS = 0, 1, 2
"""Storage of a vector's positions: none, one bit a weight, or one byte a kept weight."""
ROOM = 4096
"""Weights added up at a time, so that they stay in a core's nearest cache."""
LANES = 16
"""Weights that one AVX-512 instruction handles."""


@intrinsic  # type: ignore[untyped-decorator]
def _at(_: Any, address: Any) -> Any:
    """Turn an address into the pointer that ``numba.carray`` takes."""

    def code(context: Any, builder: Any, _: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), code


@intrinsic  # type: ignore[untyped-decorator]
def _ones(_: Any, word: Any) -> Any:
    """Count the set bits of a word."""
    return types.uint64(types.uint64), lambda _c, builder, _s, values: builder.ctpop(values[0])


@intrinsic  # type: ignore[untyped-decorator]
def _lowest(_: Any, word: Any) -> Any:
    """Return the place of the lowest set bit of a word that is not 0."""
    flag = ir.Constant(ir.IntType(1), 1)
    return types.uint64(types.uint64), lambda _c, builder, _s, values: builder.cttz(values[0], flag)


@intrinsic  # type: ignore[untyped-decorator]
def _add_lanes(_: Any, total: Any, values: Any, bits: Any, scale: Any) -> Any:
    """Add scale · (the next value) to total[i] for each i of LANES whose bit is set, in order.

    ``total`` and ``values`` are addresses of float32.
    """
    # expand-load puts consecutive values into the lanes whose bit is set, in one instruction
    number, lane = ir.FloatType(), ir.IntType(32)
    lanes, mask = ir.VectorType(number, LANES), ir.VectorType(ir.IntType(1), LANES)

    def code(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        total, values, bits, scale = arguments
        chosen = builder.bitcast(builder.trunc(bits, ir.IntType(LANES)), mask)
        kind = ir.FunctionType(lanes, [number.as_pointer(), mask, lanes])
        expand = cgutils.get_or_insert_function(
            builder.module, kind, f"llvm.masked.expandload.v{LANES}f32"
        )
        none = ir.Constant(lanes, [ir.Constant(number, 0.0)] * LANES)
        spread = builder.call(expand, [builder.inttoptr(values, number.as_pointer()), chosen, none])
        undefined = ir.Constant(lanes, ir.Undefined)
        one = builder.insert_element(undefined, scale, ir.Constant(lane, 0))
        scales = builder.shuffle_vector(
            one, undefined, ir.Constant(ir.VectorType(lane, LANES), [0] * LANES)
        )
        where = builder.inttoptr(total, lanes.as_pointer())
        before = builder.load(where, align=4)
        after = builder.fadd(before, builder.fmul(spread, scales))
        builder.store(builder.select(chosen, after, before), where, align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.uint64, types.float32), code


@intrinsic  # type: ignore[untyped-decorator]
def _stream_lanes(_: Any, out: Any, first: Any, second: Any) -> Any:
    """Write LANES sums of float32 to ``out``, past the cache; its address is a multiple of 64."""
    # A model is larger than the cache: written through it, it would push out what is still read.
    lanes = ir.VectorType(ir.FloatType(), LANES)

    def code(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        to, one, other = (builder.inttoptr(address, lanes.as_pointer()) for address in arguments)
        sums = builder.fadd(builder.load(one, align=4), builder.load(other, align=4))
        stored = builder.store(sums, to, align=64)
        stored.set_metadata(
            "nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        )
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), code


@intrinsic  # type: ignore[untyped-decorator]
def _fence(_: Any) -> Any:
    """Make what was streamed visible to every thread."""

    def code(context: Any, builder: Any, _: Any, __: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), code


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def add_words_by_lanes(total: Any, words: Any, values: Any, scale: Any) -> Any:
    """Add a vector's values at the set bits of ``words`` to ``total``; return their number."""
    where, value = np.int64(total.ctypes.data), np.int64(values.ctypes.data)
    for w in range(len(words)):
        word = words[np.uint64(w)]
        for _ in range(4):
            bits = word & np.uint64(0xFFFF)
            _add_lanes(where, value, bits, scale)
            value += 4 * np.int64(_ones(bits))
            where += 4 * LANES
            word >>= np.uint64(LANES)
    return (value - np.int64(values.ctypes.data)) // 4


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def add_words_by_bits(total: Any, words: Any, values: Any, scale: Any) -> Any:
    """Do what ``add_words_by_lanes`` does, on processors without expand-load."""
    place = np.uint64(0)
    for w in range(len(words)):
        word = words[np.uint64(w)]
        while word != 0:
            total[np.uint64(64 * w) + _lowest(word)] += values[place] * scale
            place += np.uint64(1)
            word &= word - np.uint64(1)
    return np.int64(place)


_add_words = (
    add_words_by_lanes if binding.get_host_cpu_features().get("avx512f") else add_words_by_bits
)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def add_offsets(total: Any, offsets: Any, counts: Any, values: Any, scale: Any) -> Any:
    """Add a vector's values at offsets in spans of 256 to ``total``; return their number."""
    place = np.uint64(0)
    for span in range(len(counts)):
        for _ in range(counts[span]):
            total[np.uint64(256 * span) + np.uint64(offsets[place])] += values[place] * scale
            place += np.uint64(1)
    return np.int64(place)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def write(
    out: Any,
    base: Any,
    kinds: Any,
    values: Any,
    indices: Any,
    counts: Any,
    starts: Any,
    scales: Any,
    first: Any,
    stop: Any,
    numel: Any,
) -> None:
    """Write the weights from ``first``, a multiple of ROOM, to ``stop`` of a tensor of ``numel``.

    Args:
        out: address of the tensor, float32, [numel].
        base: address of the base's values, float32, [numel]; 0: the sum alone is written.
        kinds: how each vector's positions are stored, [vectors].
        values, indices, counts: addresses of each vector's values and positions, as
            ``packed.Packed`` holds them.
        starts: index of each vector's first value in this part.
        scales: λ, float32, [vectors].
        first, stop, numel: weights.

    """
    target, source = (
        numba.carray(_at(out), (numel,), np.float32),
        numba.carray(_at(base), (numel,), np.float32),
    )
    total, at = np.empty(ROOM, np.float32), starts.copy()
    for low in range(first, stop, ROOM):
        size = min(low + ROOM, stop) - low
        total[:] = np.float32(-0.0)  # -0.0 + x is x for every x; 0.0 + -0.0 is 0.0
        for j in range(len(kinds)):
            value, scale = numba.carray(_at(values[j]), (numel,), np.float32)[at[j] :], scales[j]
            if kinds[j] == WHOLE:
                for i in range(size):
                    total[i] += value[i] * scale
                at[j] += size
            elif kinds[j] == BITS:
                words = numba.carray(_at(indices[j]), ((numel + 63) // 64,), np.uint64)
                mine = words[low // 64 : (low + size + 63) // 64]
                at[j] += _add_words(total, mine, value, scale)
            else:
                offsets = numba.carray(_at(indices[j]), (numel,), np.uint8)[at[j] :]
                count = numba.carray(_at(counts[j]), ((numel + 255) // 256,), np.int16)
                mine_counts = count[low // 256 : (low + size + 255) // 256]
                at[j] += add_offsets(total, offsets, mine_counts, value, scale)
        if base == 0:
            target[low : low + size] = total[:size]
        else:
            whole = size - size % LANES if out % 64 == 0 else 0
            added = np.int64(total.ctypes.data)
            for i in range(0, whole, LANES):
                _stream_lanes(out + 4 * (low + i), base + 4 * (low + i), added + 4 * i)
            for i in range(whole, size):
                target[low + i] = source[low + i] + total[i]
    _fence()


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})  # type: ignore[untyped-decorator]
def _dot(ours: Any, theirs: Any) -> Any:
    """Return the inner product, in float64; "reassoc" lets it be summed in lanes."""
    total = 0.0
    for i in range(len(ours)):
        total += np.float64(ours[i]) * np.float64(theirs[i])
    return total


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def add_inner_products(
    products: Any,
    gradient: Any,
    kinds: Any,
    values: Any,
    indices: Any,
    counts: Any,
    starts: Any,
    first: Any,
    numel: Any,
) -> None:
    """Add ⟨gradient, τ̃⟩ of every vector over some weights of a tensor of ``numel``.

    Args:
        products: float64, [vectors], to add to.
        gradient: float32 or float64, of the weights from ``first``, a multiple of ROOM.
        kinds, values, indices, counts, starts, first, numel: as in ``write``.

    """
    spread, at, one = np.empty(ROOM, np.float32), starts.copy(), np.float32(1)
    for begin in range(0, len(gradient), ROOM):
        part = gradient[begin : begin + ROOM]
        low, size = first + begin, len(part)
        # embeddings of words that no item has are zero
        is_zero = part[0] == 0 and _dot(part, part) == 0
        for j in range(len(kinds)):
            value = numba.carray(_at(values[j]), (numel,), np.float32)[at[j] :]
            if kinds[j] == WHOLE:
                at[j] += size
                if not is_zero:
                    products[j] += _dot(part, value[:size])
                continue
            spread[:] = 0
            if kinds[j] == BITS:
                words = numba.carray(_at(indices[j]), ((numel + 63) // 64,), np.uint64)
                mine = words[low // 64 : (low + size + 63) // 64]
                at[j] += _add_words(spread, mine, value, one)
            else:
                offsets = numba.carray(_at(indices[j]), (numel,), np.uint8)[at[j] :]
                count = numba.carray(_at(counts[j]), ((numel + 255) // 256,), np.int16)
                mine_counts = count[low // 256 : (low + size + 255) // 256]
                at[j] += add_offsets(spread, offsets, mine_counts, value, one)
            if not is_zero:
                products[j] += _dot(part, spread[:size])


def check() -> None:
    """Add up one vector of each kind; numba raises if it does not work here."""
    out, base, values = (np.zeros(ROOM, np.float32) for _ in range(3))
    words, counts = np.zeros(ROOM // 64, np.uint64), np.zeros(ROOM // 256, np.int16)
    vectors = (
        np.array([WHOLE, BITS, OFFSETS], np.int8),
        np.array([values.ctypes.data] * 3, np.int64),
        np.array([0, words.ctypes.data, words.ctypes.data], np.int64),
        np.array([0, 0, counts.ctypes.data], np.int64),
        np.zeros(3, np.int64),
    )
    scales = np.ones(3, np.float32)
    write(out.ctypes.data, base.ctypes.data, *vectors, scales, 0, ROOM, ROOM)
    add_inner_products(np.zeros(3), base, *vectors, 0, ROOM)
