"""The house keeps its plan: data flow one way, and reading a log costs no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hnf_offline

PACKAGE = Path(hnf_offline.__file__).parent

#: Who may import whom, from the plan of the house (CONTRIBUTING.md). A new edge is a decision: write it here.
ERRORS_AND_RECORDS = {"errors", "findings", "strict_json", "table"}
ALLOWED: dict[str, set[str]] = {
    # run -> profile -> detect -> relate -> report
    "run": ERRORS_AND_RECORDS | {"linalg"},
    # Two packages are also verbs (`hnf_offline.profile(run)`): called as one, they hand over to the library.
    # A barrier between two runs is measured here, and is a record of their comparison.
    "profile": ERRORS_AND_RECORDS | {"run", "quantities", "linalg", "comparison", "hnf_offline", "library"},
    "detect": ERRORS_AND_RECORDS | {"quantities"},
    "relate": ERRORS_AND_RECORDS | {"run", "quantities", "detect"},
    "report": ERRORS_AND_RECORDS | {"quantities", "comparison", "retraining", "library"},
    # retraining from a checkpoint stands between profile and report; nobody of the flow knows it
    "rerun": ERRORS_AND_RECORDS | {"run", "profile", "quantities", "linalg", "detect", "retraining"},
    # beside the flow
    "check": ERRORS_AND_RECORDS | {"run", "profile"},
    "diff": ERRORS_AND_RECORDS | {"run", "comparison", "detect", "relate"},
    "quantities": ERRORS_AND_RECORDS | {"linalg"},
    "linalg": set(),
    "comparison": ERRORS_AND_RECORDS,
    "strict_json": set(),
    "findings": {"strict_json"},
    "retraining": {"findings", "strict_json"},
    "table": set(),
    "errors": set(),
    "synthetic": {"table", "detect"},
    # The recorder's stability trigger computes S from the live optimizer; what it writes, run reads.
    "record": {"errors", "run", "quantities", "linalg"},
    # the verbs
    "proof": ERRORS_AND_RECORDS | {"run", "profile", "relate", "rerun", "retraining"},
    "pipeline": ERRORS_AND_RECORDS
    | {"output", "run", "profile", "check", "relate", "rerun", "retraining", "proof"},
    "export": {"errors"},
    # the whole way again and again, for a run that goes on
    "follow": ERRORS_AND_RECORDS | {"run", "profile", "detect", "relate", "report", "pipeline"},
    "origin": {"errors", "run"},
    "output": {"errors", "run"},
    "options": {"errors", "profile"},
    "exit": {"errors", "pipeline", "progress"},
    "progress": {"profile"},
    "printing": {"errors", "progress", "quantities", "profile"},
    "cli": ERRORS_AND_RECORDS
    | {"options", "exit", "pipeline", "printing", "progress", "run", "profile", "detect", "relate", "report"}
    | {"check", "comparison", "diff", "export", "output", "rerun", "retraining", "follow", "origin"},
    "library": ERRORS_AND_RECORDS | {"pipeline", "output", "run", "check", "profile", "report"},
    "__main__": {"cli"},
    "hnf_offline": {"run", "profile", "relate", "report", "diff"},
}
_MODULE = re.compile(r"hnf_offline(\.\w+)+")
#: The flow: whoever stands later knows the earlier, never the other way round.
FLOW = ("run", "profile", "detect", "relate", "report")


def modules(*rooms: str) -> Iterator[tuple[str, Path]]:
    """Name and file of every module, or of those of some rooms."""
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(("hnf_offline", *file.relative_to(PACKAGE).with_suffix("").parts))
        name = name.removesuffix(".__init__")
        if not rooms or room_of(name) in rooms:
            yield name, file


def room_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "hnf_offline"


def imports(file: Path, name: str) -> Iterator[str]:
    """Every module a file imports anywhere: at the top, inside functions, for types, or by its name as a string."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            yield source
            if source == "hnf_offline":
                yield from (f"hnf_offline.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            path = PACKAGE.joinpath(*node.value.split(".")[1:]) if _MODULE.fullmatch(node.value) else None
            if path is not None and (path.is_dir() or path.with_suffix(".py").is_file()):
                yield node.value


def edges() -> dict[tuple[str, str], str]:
    """(room, imported room) -> a module that does it."""
    found: dict[tuple[str, str], str] = {}
    for name, file in modules():
        for imported in imports(file, name):
            if imported.split(".")[0] != "hnf_offline":
                continue
            pair = (room_of(name), room_of(imported))
            if pair[0] != pair[1] and (imported != "hnf_offline" or pair[0] != "hnf_offline"):
                found.setdefault(pair, name)
    return found


def test_every_import_between_rooms_is_in_the_plan() -> None:
    strangers = {
        f"{room} imports {imported} (in {module})"
        for (room, imported), module in edges().items()
        if imported not in ALLOWED.get(room, set())
    }
    assert not strangers


def test_the_plan_itself_has_no_way_back() -> None:
    for place, room in enumerate(FLOW):
        assert not ALLOWED[room] & set(FLOW[place + 1 :]), room
    # What everybody may import knows nobody of the flow, so there is no way round either.
    for shared in (
        "errors",
        "strict_json",
        "findings",
        "table",
        "comparison",
        "quantities",
        "linalg",
        "retraining",
    ):
        assert not ALLOWED[shared] & {*FLOW, "rerun"}, shared
    assert not any("rerun" in ALLOWED[room] for room in FLOW)


def test_only_a_package_that_is_called_knows_the_library() -> None:
    users = {
        name
        for name, file in modules("profile", "report")
        if "hnf_offline.library" in set(imports(file, name))
    }
    assert users == {"hnf_offline.profile", "hnf_offline.report"}


def test_every_room_is_in_the_plan() -> None:
    rooms = {room_of(name) for name, _ in modules()}
    assert rooms == set(ALLOWED)


@pytest.mark.parametrize("room", ["detect", "relate", "report"])
def test_what_finds_and_tells_never_uses_torch_not_even_late(room: str) -> None:
    users = {
        name for name, file in modules(room) if {"torch"} & {i.split(".")[0] for i in imports(file, name)}
    }
    assert not users


@pytest.mark.parametrize("room", ["linalg", "quantities"])
def test_mathematics_does_not_know_what_a_run_is(room: str) -> None:
    for name, file in modules(room):
        for imported in imports(file, name):
            assert not imported.startswith(("hnf_offline.run", "hnf_offline.profile", "hnf_offline.table")), (
                name
            )


def loaded_by(names: list[str], unwanted: list[str]) -> list[str]:
    """Which of the unwanted packages are loaded once all modules are imported, in a fresh process."""
    code = (
        "import sys, importlib\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    for found in [one for one in {unwanted!r} if one in sys.modules]:\n"
        "        print(found, 'by', name); sys.exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_only_what_computes_loads_torch() -> None:
    torch_free = [
        name for name, _ in modules("hnf_offline", "detect", "relate", "report", "quantities", "cli", "diff")
    ]
    torch_free += [name for name, _ in modules("pipeline", "options", "exit", "progress", "printing")]
    torch_free += [name for name, _ in modules("origin", "follow")]
    torch_free += ["hnf_offline.run", "hnf_offline.run.records", "hnf_offline.profile"]
    torch_free += ["hnf_offline.profile.settings", "hnf_offline.run.open"]
    torch_free += [name for name, _ in modules("run") if name.startswith("hnf_offline.run.logs")]
    # Of the checks only the files that read tensors know torch; the rest looks at what they kept of them.
    reading = {"hnf_offline.check.portrait", "hnf_offline.check.initial_tensors"}
    torch_free += [name for name, _ in modules("check") if name not in reading]
    assert len(torch_free) > 50
    assert loaded_by(torch_free, ["torch", "transformers"]) == []


def test_help_is_instant() -> None:
    heavy = ["torch", "transformers", "polars", "matplotlib", "numpy", "scipy", "ruptures", "jinja2"]
    assert loaded_by(["hnf_offline", "hnf_offline.cli", "hnf_offline.options"], heavy) == []


def test_nothing_unpickles() -> None:
    """torch.load only with weights_only=True, numpy only without pickles, and no pickle but one, decoded inertly."""
    for name, file in modules():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        # pickle itself only lends the name of its error, and once its decoder: to the module that answers every
        # name with an inert record (tests/run/formats/test_inert_pickle.py shows that nothing hostile runs).
        assert not {"_pickle", "dill", "cloudpickle", "joblib", "shelve"} & set(imports(file, name)), name
        of_pickle = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        of_pickle = {words for words in of_pickle if words.startswith("pickle.")}
        decodes = name == "hnf_offline.run.formats.inert_pickle"
        assert of_pickle <= {"pickle.UnpicklingError"} | ({"pickle.Unpickler"} if decodes else set()), name
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ImportFrom) and node.module == "pickle"), name
            if isinstance(node, ast.Import):
                assert not any(alias.name == "pickle" and alias.asname for alias in node.names), name
        if decodes:
            decoders = [
                node
                for node in ast.walk(tree)
                if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(ast.unparse, node.bases)
            ]
            assert len(decoders) == ast.unparse(tree).count("pickle.Unpickler") == 1
            methods = {part.name: part for part in decoders[0].body if isinstance(part, ast.FunctionDef)}
            # Nothing it overrides asks the base class what a name or a number stands for.
            assert "find_class" in methods
            assert not any(
                "super()" in ast.unparse(one) for name, one in methods.items() if name != "__init__"
            )
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            called = ast.unparse(call.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if called == "torch.load":
                assert options.get("weights_only") == "True", f"{name}:{call.lineno}"
            if called in {"np.load", "numpy.load"}:
                assert options.get("allow_pickle", "False") == "False", f"{name}:{call.lineno}"
            assert called not in {"eval", "exec"}, f"{name}:{call.lineno}"
            assert options.get("trust_remote_code", "False") == "False", f"{name}:{call.lineno}"


def test_files_are_of_a_size_one_can_read() -> None:
    long = {
        name: lines
        for name, file in modules()
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > 450
    }
    assert not long
