"""Who may import whom, as the layout says: imports point downwards only."""

import ast
from pathlib import Path

LEVELS = [
    "errors",
    "retry",
    "cpus",
    "units",
    "redact",
    "files",
    "findings",
    "output",
    "config",
    "rollcall",
    "world",
    "track",
    "data",
    "model",
    "recipe",
    "train",
    "compare",
    "bench",
    "experiment",
    "__main__",
]
MAY = {"data": {"data"}, "model": {"model"}, "recipe": {"recipe"}, "track": {"track"}}
ONLY = {
    "nvidia": {"pipeline/data/dali.py", "pipeline/data/hybrid.py"},
    "torch.distributed": {"pipeline/world.py", "launch/agent.py"},
    "submitit": {"launch/slurm.py"},
    "pickle": set(),
}


def modules() -> list[tuple[str, ast.Module]]:
    return [(str(p), ast.parse(p.read_text())) for top in ("pipeline", "launch") for p in sorted(Path(top).rglob("*.py"))]


def imports(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: str) -> str:
    return path.removeprefix("pipeline/").split("/")[0].removesuffix(".py")


def test_there_is_something_to_check() -> None:
    assert len(modules()) > 20


def test_imports_point_downwards() -> None:
    for path, tree in modules():
        if not path.startswith("pipeline/") or room(path) in ("__init__",):
            continue
        for name in imports(tree):
            if not name.startswith("pipeline.") or name == "pipeline":
                continue
            target = name.split(".")[1]
            here = room(path)
            assert target in LEVELS, (path, name)
            assert LEVELS.index(target) <= LEVELS.index(here), f"{path} imports {name}, which is above it"
            rooms = set(MAY)
            if here in MAY and target in rooms:
                assert target in MAY[here], f"{path} imports {name}, a room beside it"


def test_pipeline_never_imports_launch() -> None:
    for path, tree in modules():
        if path.startswith("pipeline/"):
            assert not any(name.split(".")[0] == "launch" for name in imports(tree)), path


def test_launch_imports_little_of_pipeline() -> None:
    rooms = ("config", "errors", "files", "findings", "output", "redact", "units", "world", "track", "train", "__main__")
    allowed = tuple(f"pipeline.{room}" for room in rooms)
    for path, tree in modules():
        if path.startswith("launch/"):
            for name in imports(tree):
                assert not name.startswith("pipeline.") or name.startswith(allowed), (path, name)


def test_some_packages_have_one_door() -> None:
    for path, tree in modules():
        for name in imports(tree):
            for package, doors in ONLY.items():
                if name == package or name.startswith(package + "."):
                    assert path in doors, f"{path} imports {name}"
