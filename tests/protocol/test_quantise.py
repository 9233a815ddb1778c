"""The quantiser and its bytes, against struct and integers written out by hand."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flt.protocol.quantise import BITS, decoded, dequantise, encoded, pack, packed_size, quantise, scales_of, unpack

LOW = BITS[:-1]
of_bits = pytest.mark.parametrize("bits", LOW)
vectors = hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(-(2.0**100), 2.0**100, width=32))
frugal = settings(max_examples=60, deadline=None)


@of_bits
@frugal
@given(vectors)
@example(np.array([1e-45, 0.0], np.float32))
@example(np.array([-3e-45, 1e-45, 7e-45], np.float32))
def test_a_vector_comes_back_within_half_a_scale(bits: int, vector: np.ndarray) -> None:
    codes, scale = quantise(vector, bits)
    found = dequantise(codes, scale)
    assert found.dtype == np.float32
    assert np.abs(codes).max(initial=0) <= 2 ** (bits - 1) - 1
    for value, back in zip(vector, found, strict=True):
        rounding = Fraction(float(abs(np.spacing(back)))) / 2
        assert abs(Fraction(float(value)) - Fraction(float(back))) <= Fraction(float(scale)) / 2 + rounding


@of_bits
@frugal
@given(vectors.filter(lambda v: float(np.abs(v).max(initial=0)) > 1e-30))
def test_the_scale_is_the_peak_over_the_levels(bits: int, vector: np.ndarray) -> None:
    codes, scale = quantise(vector, bits)
    exact = float(np.abs(vector).max()) / (2 ** (bits - 1) - 1)
    assert exact <= float(scale) * (1 + 1e-15)
    assert float(scale) <= exact * (1 + 2**-22)
    peak = int(np.argmax(np.abs(vector)))
    assert codes[peak] == np.sign(vector[peak]) * (2 ** (bits - 1) - 1)


def test_two_bits_have_the_levels_minus_one_zero_and_one() -> None:
    codes, scale = quantise(np.array([-4.0, -2.1, -1.9, 0.0, 1.9, 2.1, 4.0], np.float32), 2)
    assert (codes.tolist(), scale) == ([-1, -1, 0, 0, 0, 1, 1], 4.0)


@of_bits
def test_zeros_stay_zeros_and_what_is_not_finite_shows(bits: int) -> None:
    assert quantise(np.zeros(3, np.float32), bits)[1] == 0
    for vector in (np.zeros(3, np.float32), np.zeros(0, np.float32)):
        assert dequantise(*quantise(vector, bits)).tolist() == vector.tolist()
    for bad in (np.nan, np.inf, -np.inf):
        assert np.isnan(dequantise(*quantise(np.array([1.0, bad], np.float32), bits))).all()
    assert np.isinf(dequantise(np.array([7]), np.float32(3e38))).all()


@of_bits
@frugal
@given(st.data())
def test_codes_are_packed_to_the_bytes_of_their_bits(bits: int, data: st.DataObject) -> None:
    """Against one large integer, of which each code is the next digits."""
    half = 2 ** (bits - 1)
    codes = np.array(data.draw(st.lists(st.integers(-half, half - 1), max_size=20)), np.int32)
    whole = sum((int(code) % 2**bits) << (bits * at) for at, code in enumerate(codes))
    size = -(-len(codes) * bits // 8)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.tobytes() == whole.to_bytes(size, "little")
    assert packed_size(len(codes), bits) == size
    assert unpack(packed, len(codes), bits).tolist() == codes.tolist()


def test_eight_and_sixteen_bits_are_the_integers_of_struct_and_32_the_floats() -> None:
    codes = np.array([-127, 0, 5, 127])
    assert pack(codes, 8).tobytes() == struct.pack("<4b", *codes)
    assert pack(codes * 250, 16).tobytes() == struct.pack("<4h", *(codes * 250))
    vector = np.array([1.5, -0.0, 1e-45, 3e38], np.float32)
    data, scales = encoded(vector, 32)
    assert (data.tobytes(), scales) == (struct.pack("<4f", *vector), [])
    assert decoded(data, 4, 32, np.float32(0)).tobytes() == vector.tobytes()


@pytest.mark.parametrize("bits", BITS)
def test_encoded_and_decoded_are_the_steps_together(bits: int) -> None:
    vector = np.random.default_rng(0).normal(size=11).astype(np.float32)[::2]
    data, scales = encoded(vector, bits)
    assert (len(data), len(scales)) == (packed_size(6, bits), scales_of(bits))
    odd = np.concatenate([np.zeros(1, np.uint8), data])[1:]  # as a slice of a longer message: not aligned
    found = decoded(odd, 6, bits, scales[0] if scales else np.float32(1))
    assert found.tolist() == (vector if bits == 32 else dequantise(*quantise(vector, bits))).tolist()
