"""How deep and how large the tuples of a pickle are, counted without making them.

A tuple of two of the tuple before, forty times over, is a pickle of 200 bytes; whoever takes its hash, as a dictionary
does with a key, walks a million million places, and a hundred thousand tuples in each other overflow the stack.
"""

from __future__ import annotations

from collections.abc import Sequence

_LARGEST = 1_000_000
_DEEPEST = 200

#: (places it has when it is walked through, levels).
_Extent = tuple[int, int]
_ONE: _Extent = (1, 1)
_CONSTANTS = frozenset({
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "GLOBAL"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES"),
    *("SHORT_BINSTRING", "BINSTRING"),
    # What has no hash is not walked through for one.
    *("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"),
})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "NEWOBJ": 2}
_TAKEN = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_TAKEN_TO_MARK = {"APPENDS", "SETITEMS", "ADDITEMS"}
_REPLACED = {"STACK_GLOBAL": 2, "BINPERSID": 1}


class Nesting:
    """The stack of a pickle as extents; give it every opcode in order."""

    def __init__(self) -> None:
        self._stack: list[_Extent] = []
        self._marks: list[int] = []
        self._memo: dict[int, _Extent] = {}

    def take(self, name: str, argument: object) -> None:
        """Follow one opcode; what is missing on the stack raises IndexError or KeyError.

        Args:
            name: its name in pickletools.
            argument: its argument.

        Raises:
            ValueError: when tuples are nested beyond what anybody saves.
        """
        stack = self._stack
        if name in _CONSTANTS:
            stack.append(_ONE)
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in {"BINPUT", "LONG_BINPUT"} and isinstance(argument, int):
            self._memo[argument] = stack[-1]
        elif name in {"BINGET", "LONG_BINGET"} and isinstance(argument, int):
            stack.append(self._memo[argument])
        elif name in _TUPLES:
            stack.append(_together(self._pop(_TUPLES[name])))
        elif name in {"TUPLE", "FROZENSET"}:
            stack.append(_together(self._pop(len(stack) - self._marks.pop())))
        elif name in _TAKEN:
            self._pop(_TAKEN[name])
        elif name in _TAKEN_TO_MARK:
            self._pop(len(stack) - self._marks.pop())
        elif name in _REPLACED:
            self._pop(_REPLACED[name])
            stack.append(_ONE)

    def _pop(self, count: int) -> Sequence[_Extent]:
        if count > len(self._stack) or count < 0:
            raise IndexError("its stack is empty")
        if not count:
            return ()
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken


def _together(parts: Sequence[_Extent]) -> _Extent:
    size = 1 + sum(part[0] for part in parts)
    depth = 1 + max((part[1] for part in parts), default=0)
    if size > _LARGEST or depth > _DEEPEST:
        raise ValueError("it nests tuples without end")
    return size, depth
