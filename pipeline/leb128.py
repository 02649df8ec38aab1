"""Unsigned integers in as few bytes as they need: ClickHouse's and Kafka's variable length."""


def leb128(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
