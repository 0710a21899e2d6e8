"""Pickles that do something when they are unpickled: the canaries, one for every way a pickle can call.

Each is a sequence of opcodes that leaves nothing on the stack, so that it can stand before a whole valid pickle: a
reader that runs it goes on as if nothing had been, and a reader that runs no code refuses it.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping

#: Set in the environment, and the file made, by a canary that sings; `watch.py` looks for both.
VARIABLE = "HNF_HOSTILE_CANARY"
MODULE = "hnf_hostile_canary"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def canaries(marker: str) -> Mapping[str, bytes]:
    """Opcodes by route; `marker` is the file that a canary makes."""
    command = f"touch {marker}"
    python = f"open({marker!r}, 'w').close()"
    inner = pickle.dumps(None)  # what a second pickle would be; the call alone is what must not happen
    call = text(command) + b"\x85R0"
    put = b"cos\nputenv\n" + text(VARIABLE) + text("sings") + b"\x86R0"
    found: dict[str, bytes] = {
        "REDUCE posix.system": b"cposix\nsystem\n" + call,
        "REDUCE os.system": b"cos\nsystem\n" + call,
        "REDUCE os.putenv": put,
        "STACK_GLOBAL os.system": text("os") + text("system") + b"\x93" + call,
        "STACK_GLOBAL dotted": text("os") + text("path.os.system") + b"\x93" + call,
        "INST os.system": b"(" + text(command) + b"ios\nsystem\n0",
        "OBJ os.system": b"(cos\nsystem\n" + text(command) + b"o0",
        "NEWOBJ subprocess.Popen": b"csubprocess\nPopen\n(" + text("touch") + text(marker) + b"l\x85\x810",
        "NEWOBJ_EX subprocess.Popen": b"csubprocess\nPopen\n("
        + text("touch")
        + text(marker)
        + b"l\x85}\x920",
        "BUILD __setstate__": b"ccollections\nOrderedDict\n)R}"
        + text("__setstate__")
        + b"cos\nsystem\nsb"
        + text(command)
        + b"b0",
        "BUILD on a class": b"ctorch\nSize\n}" + text("__new__") + b"cos\nsystem\nsb0",
        "BUILD on a record": b"ctorch.distributed.checkpoint.metadata\nMetadata\n}"
        + text("__reduce__")
        + b"cos\nsystem\nsb0",
        "getattr chain": b"cbuiltins\ngetattr\ncbuiltins\n__import__\n"
        + text("os")
        + b"\x85R"
        + text("system")
        + b"\x86R"
        + call,
        "builtins.eval": b"cbuiltins\neval\n" + text(python) + b"\x85R0",
        "builtins.exec": b"cbuiltins\nexec\n" + text(python) + b"\x85R0",
        "__builtin__.eval": b"c__builtin__\neval\n" + text(python) + b"\x85R0",
        "builtins.open": b"cbuiltins\nopen\n" + text(marker) + text("w") + b"\x86R0",
        "importlib": b"cimportlib\nimport_module\n" + text(MODULE) + b"\x85R0",
        "GLOBAL imports": f"c{MODULE}\nanything\n0".encode(),
        "runpy": b"crunpy\n_run_code\n" + text(python) + b"}\x86R0",
        "pathlib write": b"cpathlib\nPath.write_text\ncpathlib\nPath\n"
        + text(marker)
        + b"\x85R"
        + text("x")
        + b"\x86R0",
        "shutil.copy": b"cshutil\ncopy\n" + text("/etc/passwd") + text(marker) + b"\x86R0",
        "timeit": b"ctimeit\ntimeit\n" + text("pass") + text(python) + b"\x86R0",
        "functools.partial": b"cfunctools\npartial\ncos\nsystem\n\x85R" + b")R0",
        "operator.methodcaller": b"coperator\nmethodcaller\n"
        + text("touch")
        + b"\x85Rcpathlib\nPath\n"
        + text(marker)
        + b"\x85R\x85R0",
        "_pickle.loads": b"c_pickle\nloads\nB" + struct.pack("<I", len(inner)) + inner + b"\x85R0",
        "marshal": b"cmarshal\nloads\nB\x01\x00\x00\x00N\x85R0",
        "extension registry": b"\x82\x010",
        "persistent object": text("storage") + b"Q0",
        "numpy runstring": b"cnumpy.testing._private.utils\nrunstring\n" + text(python) + b"}\x86R0",
        "numpy f2py": b"cnumpy.f2py.diagnose\nrun_command\n" + call,
        # Of torch itself: names that unpickle, load or compile; an allow-list by module would let them through.
        "torch _load_from_bytes": b"ctorch.storage\n_load_from_bytes\nB"
        + struct.pack("<I", len(inner))
        + inner
        + b"\x85R0",
        "torch.load": b"ctorch\nload\n" + text(marker) + b"\x85R0",
        "torch.save": b"ctorch\nsave\nK\x01" + text(marker) + b"\x86R0",
        "torch.hub.load": b"ctorch.hub\nload\n" + text("a/b") + text("c") + b"\x86R0",
        "torch.jit.load": b"ctorch.jit\nload\n" + text(marker) + b"\x85R0",
        "torch.classes.load_library": b"ctorch.classes\nload_library\n" + text(marker) + b"\x85R0",
        "torch Tensor.tofile": b"ctorch\nTensor.__module__.__class__\n0",
        "torch cpp_extension": b"ctorch.utils.cpp_extension\nload_inline\n"
        + text("x")
        + text(python)
        + b"\x86R0",
        "torch UntypedStorage.from_file": b"ctorch.storage\nUntypedStorage.from_file\n"
        + text(marker)
        + b"\x88K\x08\x87R0",
        "torch rebuild with a function": b"ctorch._tensor\n_rebuild_from_type_v2\ncos\nsystem\n"
        + text(command)
        + b"\x85}\x87R0",
        "torch wrapper subclass": b"ctorch._utils\n_rebuild_wrapper_subclass\ncsubprocess\nPopen\n\x85R0",
    }
    return found


def before(canary: bytes, whole: bytes) -> bytes:
    """Put a canary behind the protocol marker and frame of a pickle, in front of everything else."""
    rest = whole
    if rest[:1] == b"\x80":
        rest = rest[2:]
    if rest[:1] == b"\x95":  # a frame says how long it is, and would be wrong
        rest = rest[9:]
    return b"\x80\x04" + canary + rest


def alone(canary: bytes) -> bytes:
    """A pickle that is the canary, and then None."""
    return b"\x80\x04" + canary + b"N."


def in_archive(archive: bytes, canary: bytes) -> bytes:
    """Put a canary into the data.pkl of a torch.save archive."""
    return rewritten(archive, lambda name, data: before(canary, data) if name.endswith("data.pkl") else data)


def rewritten(archive: bytes, change: object, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Write an archive anew, every member changed by a function of its name and content."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as read, zipfile.ZipFile(out, "w", compression) as write:
        for member in read.infolist():
            changed = change(member.filename, read.read(member))  # type: ignore[operator]
            if changed is not None:
                write.writestr(zipfile.ZipInfo(member.filename), changed, compression)
    return out.getvalue()


def bombs() -> Iterator[tuple[str, bytes]]:
    """Pickles of a few bytes that ask for more memory or time than there is, without calling anything forbidden."""
    huge = b"\x8a\x06" + (10**12).to_bytes(6, "little")
    yield "a memo of four billion places", b"\x80\x02K\x01r\xff\xff\xff\xff."
    yield "bytes of a terabyte", b"\x80\x04\x8e" + struct.pack("<Q", 10**12) + b"."
    yield "a bytearray of a terabyte", b"\x80\x05\x96" + struct.pack("<Q", 10**12) + b"."
    yield "bytearray(10**12)", b"\x80\x02cbuiltins\nbytearray\n" + huge + b"\x85R."
    yield (
        "bytearray(3 * 10**9)",
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (3 * 10**9).to_bytes(5, "little") + b"\x85R.",
    )
    yield "FloatTensor(10**12)", b"\x80\x02ctorch\nFloatTensor\n" + huge + b"\x85R."
    yield "a frame of a terabyte", b"\x80\x04\x95" + struct.pack("<Q", 10**12) + b"N."
    yield (
        "a number of a million digits",
        b"\x80\x02\x8b" + struct.pack("<I", 400_000) + b"\x7f" * 400_000 + b".",
    )
    yield "a decimal of a million digits", b"\x80\x02I" + b"9" * 1_000_000 + b"\n."
    yield "lists in lists, 100,000 deep", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    yield "tuples in tuples, 100,000 deep", b"\x80\x02)" + b"\x85" * 100_000 + b"."
    # Ten lists of ten of the list before: nothing to hold, for ever to walk.
    laugh = b"\x80\x02]q\x00"
    for level in range(1, 40):
        laugh += b"](" + b"h" + bytes([level - 1])
        laugh += (b"h" + bytes([level - 1])) * 9 + b"eq" + bytes([level])
    yield "a billion laughs", laugh + b"."
    twice = b"\x80\x02K\x01q\x00" + b"".join(
        b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86q" + bytes([level + 1]) for level in range(60)
    )
    yield "a key of a billion laughs", b"\x80\x02}" + twice[2:] + b"K\x01s."
    yield "a key that is 100,000 deep", b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s."
    yield "a list that holds itself", b"\x80\x02]q\x00h\x00ah\x00a."
