"""The wire format of protocol buffers: numbered fields, one after the other."""

from __future__ import annotations

from collections.abc import Iterator


def fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Go through the fields of one message that hold bytes: texts and messages in it. Others are passed over.

    Args:
        data: the message.

    Yields:
        Pairs of field number and content.

    Raises:
        ValueError: when it is no message, or one that was cut.

    Source: protobuf.dev/programming-guides/encoding.
    """
    position, end = 0, len(data)
    while position < end:
        key = data[position]
        position += 1
        if key > 127:
            key, position = _varint(data, position - 1)
        kind = key & 7
        if kind == 2:
            length, position = _varint(data, position)
            if length > end - position:
                raise ValueError("a field is longer than its message")
            yield key >> 3, data[position : position + length]
            position += length
        elif kind == 0:
            _, position = _varint(data, position)
        elif kind in {1, 5}:
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(f"no field is of kind {kind}")
    if position > end:
        raise ValueError("the last field is cut")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    # A number in groups of seven bits, the lowest first; and where the next thing begins. Most have one group.
    if position < len(data) and data[position] < 128:
        return data[position], position + 1
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise ValueError("a number is cut or too long")
