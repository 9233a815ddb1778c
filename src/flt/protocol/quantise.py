"""Symmetric uniform quantisation of vectors, and packing of the resulting codes into bytes.

The idea is from HAFLQ (arXiv 2411.06581v2). The formulas are our reconstruction:

    scale = max |v| / L,  L = 2^(q - 1) - 1,  code = round(v / scale) in -L .. L,  v' = scale * code

v is the vector, q the number of bits per value, and v' the vector after dequantisation. With q = 32, the values stay
unchanged as float32, and there is no scale.
"""

from __future__ import annotations

import numpy as np

BITS = (2, 4, 8, 16, 32)
"""Allowed numbers of bits per value q, smallest first."""
SCALE_BYTES = 4
"""Number of bytes of a scale."""
_FLOAT = 32


def quantise(vector: np.ndarray, bits: int) -> tuple[np.ndarray, np.float32]:
    """Computes the codes and the scale of a vector.

    The scale is a float32 number, rounded up. Therefore no code leaves its range, and |v - v'| <= scale / 2. If a value
    of the vector isn't finite, the scale is nan, and all values are nan after dequantisation.

    Args:
        vector: Values v (n,), float32.
        bits: Number of bits q: 2, 4, 8 or 16.

    Returns:
        Codes (n,), int32, and the scale. The scale of a vector of zeros is 0.

    Example:
        >>> codes, scale = quantise(np.array([0.5, -1.0, 0.1], np.float32), 2)
        >>> codes.tolist(), float(scale)
        ([0, -1, 0], 1.0)
    """
    levels = 2 ** (bits - 1) - 1
    exact = vector.astype(np.float64)
    peak = float(np.abs(exact).max(initial=0.0))
    if not np.isfinite(peak):
        return np.zeros(len(vector), np.int32), np.float32(np.nan)
    if peak == 0:
        return np.zeros(len(vector), np.int32), np.float32(0)
    scale = np.float32(peak / levels)
    if float(scale) * levels < peak:
        scale = np.nextafter(scale, np.float32(np.inf))
    return np.rint(exact / float(scale)).astype(np.int32), scale


def dequantise(codes: np.ndarray, scale: np.float32) -> np.ndarray:
    """Returns the vector scale * codes as float32.

    The vector is finite if the scale is finite and no product overflows.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return (codes.astype(np.float64) * float(scale)).astype(np.float32)


def packed_size(length: int, bits: int) -> int:
    """Returns the number of bytes that ``length`` codes take, with ``bits`` bits for each code.

    Example:
        >>> [packed_size(5, bits) for bits in BITS]
        [2, 3, 5, 10, 20]
    """
    return -(-length * bits // 8)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs codes into bytes.

    Four codes of 2 bits or two codes of 4 bits share a byte. The first code is in the lowest bits. Codes of 8 bits are
    stored as int8, and codes of 16 bits as little-endian int16.

    Args:
        codes: Integers (n,) that fit into q bits in two's complement.
        bits: Number of bits q: 2, 4, 8 or 16.

    Returns:
        Bytes, uint8, shape (ceil(n q / 8),). The unused bits of the last byte are 0.
    """
    if bits == 16:
        return codes.astype("<i2").view(np.uint8)
    per_byte = 8 // bits
    padded = np.zeros(packed_size(len(codes), bits) * per_byte, np.uint8)
    padded[: len(codes)] = codes & (2**bits - 1)
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    return np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1).astype(np.uint8)


def unpack(data: np.ndarray, length: int, bits: int) -> np.ndarray:
    """Returns the codes (n,), int32, from the bytes that :func:`pack` wrote."""
    if bits == 16:
        return data.view("<i2").astype(np.int32)
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    codes = ((data[:, None] >> shifts) & (2**bits - 1)).astype(np.int32).ravel()[:length]
    return np.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes)


def encoded(vector: np.ndarray, bits: int) -> tuple[np.ndarray, list[np.float32]]:
    """Encodes a float32 vector. Returns the bytes, and a list with the scale. With 32 bits, the list is empty."""
    if bits == _FLOAT:
        return vector.astype("<f4").view(np.uint8), []
    codes, scale = quantise(vector, bits)
    return pack(codes, bits), [scale]


def decoded(data: np.ndarray, length: int, bits: int, scale: np.float32) -> np.ndarray:
    """Returns the float32 vector (n,) from the bytes that :func:`encoded` wrote. With 32 bits, the scale isn't used."""
    if bits == _FLOAT:
        return data.view("<f4").astype(np.float32)
    return dequantise(unpack(data, length, bits), scale)


def scales_of(bits: int) -> int:
    """Returns the number of scales of a vector with this number of bits per value: 0 with 32 bits, else 1."""
    return 0 if bits == _FLOAT else 1
