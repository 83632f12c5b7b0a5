"""FNV-1a and splitmix64, which scripts and tests share (tests/support), 64 bits each."""

SPLITMIX64_STEP = 0x9E3779B97F4A7C15  # from a state to the next


def fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def splitmix64(state):
    """The number of a state: an int, or a numpy array of uint64."""
    z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 2**64 - 1
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & 2**64 - 1
    return z ^ (z >> 31)
