"""Archives that lie about their members, and numpy arrays that lie about their shapes."""

from __future__ import annotations

import io
import re
import struct
import zipfile

from . import pickles
from .cases import NAMES, Case, Rng, pick


def is_zip(path: str) -> bool:
    return (
        path.endswith((".pt", ".pth", ".ckpt", ".npz"))
        or "pytorch_model-2" in path
        or path.endswith("training_args.bin")
    )


def damage_zip(rng: Rng, one: Case, path: str, marker: str) -> str:
    data = one.files[path]
    how = pick(
        rng,
        (
            "deflate",
            "rename",
            "outside",
            "drop",
            "twice",
            "bomb",
            "sizes",
            "method",
            "empty",
            "swap",
            "comment",
            "zip64",
        ),
    )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.namelist()
    chosen = pick(rng, members)
    if how == "deflate":
        changed = pickles.rewritten(data, lambda name, content: content, compression=zipfile.ZIP_DEFLATED)
    elif how in {"rename", "outside"}:
        name = (
            pick(rng, NAMES[:8])
            if how == "rename"
            else pick(rng, ("../../x", "/etc/passwd", "a/../../b", "C:\\x"))
        )
        name = name.encode("utf-8", "replace").decode()
        changed = data.replace(chosen.encode(), name.encode()[: len(chosen)].ljust(len(chosen), b"_"))
        if how == "outside":
            buffer = io.BytesIO(data)
            with zipfile.ZipFile(buffer, "a") as archive:
                archive.writestr(name, b"x")
            changed = buffer.getvalue()
    elif how == "drop":
        changed = pickles.rewritten(data, lambda name, content: None if name == chosen else content)
    elif how == "empty":
        changed = pickles.rewritten(data, lambda name, content: b"" if name == chosen else content)
    elif how == "swap":
        changed = pickles.rewritten(data, lambda name, content: rng.bytes(50) if name == chosen else content)
    elif how == "bomb":
        zeros = bytes(20_000_000)
        changed = pickles.rewritten(
            data,
            lambda name, content: content + zeros if name == chosen else content,
            compression=zipfile.ZIP_DEFLATED,
        )
    elif how == "twice":
        buffer = io.BytesIO(data)
        with zipfile.ZipFile(buffer, "a") as archive:
            archive._filelist = []  # type: ignore[attr-defined]
            archive.NameToInfo.clear()
            archive.writestr(chosen, rng.bytes(30))
        changed = buffer.getvalue()
    elif how == "comment":
        changed = data[:-2] + struct.pack("<H", 60_000) + b"PK\x05\x06" * 15_000
    else:
        # The central directory says what a member's size, method or place is; here it lies.
        changed_bytes = bytearray(data)
        entries = [found.start() for found in re.finditer(b"PK\x01\x02", data)]
        entry = pick(rng, entries) if entries else 0
        offset, form = pick(rng, ((20, "<I"), (24, "<I"), (42, "<I"), (10, "<H"), (28, "<H"), (8, "<H")))
        value = pick(rng, (0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)) & (
            0xFFFFFFFF if form == "<I" else 0xFFFF
        )
        if how == "method":
            offset, form, value = 10, "<H", int(pick(rng, (8, 9, 12, 14, 93, 99)))
        if entries:
            struct.pack_into(form, changed_bytes, entry + offset, value)
        changed = bytes(changed_bytes)
        how = f"{how} of {offset} is {value}"
    one.files[path] = changed
    return f"zip: {how} ({chosen})"


def damage_npz(rng: Rng, one: Case, path: str, marker: str) -> str:
    """A header of one array that lies."""
    shape = pick(
        rng,
        (
            "(8, 4)",
            "(10**3, 4)",
            "(1000000000000, 4)",
            "(-1, 4)",
            "(8, 0)",
            "(0, 4)",
            "(8,)",
            "()",
            "(2, 2, 8)",
            "(8.5, 4)",
            "(8, 4, )" + " " * 9000,
            "(True, 32)",
            "((8, 4), 2)",
            "(" * 90 + "8" + ")" * 90,
            "(4294967296, 4294967296)",
            "__import__('os').system('x')",
            "(2**63,)",
            "['8', 4]",
            "(8, 9223372036854775807)",
        ),
    )
    kind = pick(
        rng,
        (
            "|u1",
            "<u2",
            "<i8",
            "<f4",
            "|O",
            "<U5",
            "|V8",
            "<M8[ns]",
            "<c16",
            "|S1",
            "|b1",
            "<i3",
            "[('a','<i4')]",
            "x" * 500,
        ),
    )
    spelled = kind if kind.startswith("[") else repr(kind)
    order = pick(rng, (False, True, 1, None))
    header = f"{{'descr': {spelled}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    version = pick(rng, (b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    size = (
        struct.pack("<H", len(header))
        if version == b"\x01\x00"
        else struct.pack("<I", pick(rng, (len(header), 2**32 - 1)))
    )
    canary = pickles.alone(pickles.canaries(marker)["REDUCE os.system"])
    array = b"\x93NUMPY" + version + size + header + pick(rng, (canary, bytes(32), bytes(64), b""))
    if path.endswith(".npy"):
        one.files[path] = array
    else:
        chosen = pick(rng, ("tokens.npy", "steps.npy", "labels.npy"))
        data = pickles.rewritten(one.files[path], lambda name, content: None if name == chosen else content)
        buffer = io.BytesIO(data)
        with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo(chosen), array)
        one.files[path] = buffer.getvalue()
    return f"npy header {shape[:30]} {kind[:20]}"
