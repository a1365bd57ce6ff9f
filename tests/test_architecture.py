"""The floors and rooms of the code: who may import whom, and how large and how unique things may be.

Each check is a function of a folder, and a test breaks it on purpose: a wrong arrow would be seen.
"""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "vae": (),
    "captioning": ("vae",),
    "dit": ("captioning", "vae"),
    "training": ("dit", "captioning", "vae"),
    "app": ("dit", "captioning", "vae"),
}
# The rooms of each floor from the bottom up: levels of rooms, each with the patterns of its modules. A module may
# import its own room and every lower level, but no other room of its level. "*" stands for what no other pattern fits.
ROOMS: dict[str, list[dict[str, tuple[str, ...]]]] = {
    "vae": [
        {"files": ("files",)},
        {"network": ("*",), "video": ("video", "video.*")},
    ],
    "dit": [
        {"core": ("*",)},
        {"sampling": ("sampler", "batching", "guidance", "camera")},
        {"denoiser": ("denoiser",)},
        {"pipeline": ("pipeline",)},
        {"estimate": ("estimate", "sampling_cost")},
        {"adapters": ("adapters", "adapters.*")},
    ],
    "training": [
        {"world": ("world", "world.*")},
        {"shared": ("*",)},
        {"evaluation": ("evaluation", "evaluation.*"), "prepare": ("prepare", "prepare.*")},
        {"trainers": ("train_*", "recipe", "cost", "command", "examples", "prompt_pairs")},
        {"experiments": ("experiments", "experiments.*"), "scaling": ("scaling", "scaling.*")},
    ],
    "app": [
        {"settings": ("home", "registry", "licences", "formats", "exit_codes")},
        {"provenance": ("provenance", "provenance.*"), "policy": ("policy", "policy.*")},
        {"render": ("render",)},
        {"queue": ("queue", "queue.*")},
        {"batch": ("batch", "batch.*")},
        {"server": ("server", "server.*")},
        {"studio": ("studio", "studio.*")},
        {"commands": ("commands", "commands.*")},
        {"cli": ("cli",)},
        {"loadtest": ("loadtest", "loadtest.*")},
    ],
}
DOOR = "app.commands."  # the only modules of `app` that may name a module of `training`, and that only as a string
MAX_LINES = 400


def modules_in(root: Path) -> dict[str, Path]:
    """Return the path of every module of the five floors, by its dotted name."""
    paths = [path for floor in FLOORS for path in sorted((root / floor).rglob("*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported_names(module: str, path: Path) -> Iterator[str]:
    """Yield the dotted name of each import of a file: at its top, in functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def imports_in(root: Path) -> dict[str, set[str]]:
    """Return the modules of the five floors that each of them imports; a floor that is imported but has no such module
    stands for itself.
    """
    modules = modules_in(root)
    found: dict[str, set[str]] = {module: set() for module in modules}
    for module, path in modules.items():
        for name in imported_names(module, path):
            parts = name.split(".")
            target = next((t for n in range(len(parts), 0, -1) if (t := ".".join(parts[:n])) in modules), parts[0])
            if parts[0] in FLOORS and target != module:
                found[module].add(target)
    return found


def floor_violations(root: Path) -> list[str]:
    """List the imports of a floor that is not below."""
    return [
        f"{module} imports {target}"
        for module, targets in imports_in(root).items()
        for target in sorted(targets)
        if target.split(".")[0] not in (floor := module.split(".")[0], *FLOORS[floor])
    ]


def room_of(module: str) -> tuple[int, str] | None:
    """Return the level and the room of a module; None for a floor itself or one without rooms."""
    floor, _, name = module.partition(".")
    rooms = [
        (level, room, pattern)
        for level, rooms in enumerate(ROOMS.get(floor, []))
        for room, patterns in rooms.items()
        for pattern in patterns
    ]
    for level, room, pattern in sorted(rooms, key=lambda found: found[2] == "*"):
        if name and fnmatch(name, pattern):
            return level, room
    return None


def room_violations(root: Path) -> list[str]:
    """List the imports, within a floor, of a higher room or of another room of the same level."""
    found = []
    for module, targets in imports_in(root).items():
        for target in sorted(targets):
            own, other = room_of(module), room_of(target)
            if module.split(".")[0] == target.split(".")[0] and own and other and own != other and own[0] <= other[0]:
                found.append(f"{module} ({own[1]}) imports {target} ({other[1]})")
    return found


def homeless(root: Path) -> list[str]:
    """List the modules that are in no room of their floor, where the floor has rooms."""
    inside = [module for module in modules_in(root) if "." in module and module.split(".")[0] in ROOMS]
    return [module for module in inside if room_of(module) is None]


def cycles(root: Path) -> list[list[str]]:
    """List the groups of modules that import each other in a circle (strongly connected components, Tarjan 1972)."""
    graph = imports_in(root)
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for target in graph.get(module, ()):
            if target not in order:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], order[target])
        if lowest[module] == order[module]:
            component = [stack.pop()]
            while component[-1] != module:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for module in graph:
        if module not in order:
            visit(module)
    return found


def door_violations(root: Path) -> list[str]:
    """List where `app` imports `training` by a statement, or outside the door by a string or a computed name."""
    modules = modules_in(root)
    found = []
    for module, path in modules.items():
        if module.split(".")[0] != "app":
            continue
        names = sorted(imported_names(module, path))
        found += [f"{module} imports {name}" for name in names if name.split(".")[0] == "training"]
        for node in [] if module.startswith(DOOR) else ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Constant(value=str(text)) if text.split(".")[0] == "training" and text in modules:
                    found.append(f"{module} names {text}")
                case ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"):
                    found.append(f"{module} imports a module by a computed name")
    return found


def duplicate_classes(root: Path) -> list[str]:
    """List the class names that stand in two files, tests included."""
    files = defaultdict(set)
    for path in [*modules_in(root).values(), *sorted((root / "tests").glob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                files[node.name].add(str(path.relative_to(root)))
    return [f"{name}: {', '.join(sorted(paths))}" for name, paths in sorted(files.items()) if len(paths) > 1]


def long_files(root: Path) -> list[str]:
    """List the files, tests included, of more than MAX_LINES lines."""
    paths = [*modules_in(root).values(), *sorted((root / "tests").glob("*.py"))]
    counts = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in paths}
    return [f"{name}: {count} lines" for name, count in counts.items() if count > MAX_LINES]


CHECKS: dict[Callable[[Path], list], dict[str, str]] = {  # each with a tree of files that breaks it
    floor_violations: {
        "vae/model.py": "def f():\n    from dit import model\n",
        "dit/model.py": "",
        "dit/__init__.py": "",
    },
    room_violations: {"app/queue/jobs.py": "from ..studio.page import page\n", "app/studio/page.py": "page = 1\n"},
    homeless: {"app/helpers.py": ""},
    cycles: {
        "dit/canvas.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dit.flow import Flow\n",
        "dit/flow.py": "def f():\n    import dit.canvas\n",
    },
    door_violations: {"app/queue/jobs.py": "import importlib\nimportlib.import_module('train' + 'ing')\n"},
    duplicate_classes: {"vae/model.py": "class Task: ...\n", "tests/test_model.py": "def f():\n    class Task: ...\n"},
    long_files: {"tests/test_model.py": "\n" * (MAX_LINES + 1)},
}


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_is_in_order(check):
    assert not check(ROOT)


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_each_check_sees_what_breaks_it(check, tmp_path):
    assert not check(tmp_path)
    write_tree(tmp_path, CHECKS[check])
    assert check(tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"dit/a.py": "import captioning.x\nfrom training import y\n"}, ["dit.a imports training"]),
        ({"training/a.py": "import app.cli\n", "app/cli.py": "import training.a\n"},
         ["training.a imports app.cli", "app.cli imports training.a"]),
        ({"captioning/a.py": "from vae import b\n", "vae/b.py": ""}, []),
    ],
)  # fmt: skip
def test_a_floor_imports_only_floors_below_it(tmp_path, files, expected):
    write_tree(tmp_path, files)
    assert floor_violations(tmp_path) == expected


@pytest.mark.parametrize(
    ("files", "broken"),
    [
        ({"app/commands/a.py": "import app.queue.b\n", "app/queue/b.py": ""}, False),
        ({"app/queue/b.py": "def f():\n    import app.render\n", "app/render.py": ""}, False),
        ({"app/render.py": "import app.queue.b\n", "app/queue/b.py": ""}, True),
        ({"app/policy/a.py": "import app.provenance.b\n", "app/provenance/b.py": ""}, True),
        ({"vae/model.py": "import vae.video.read\n", "vae/video/read.py": ""}, True),
        ({"training/world/a.py": "from training import loop\n", "training/loop.py": ""}, True),
        ({"training/loop.py": "import training.train_vae\n", "training/train_vae.py": ""}, True),
        ({"training/train_vae.py": "import training.evaluation.b\n", "training/evaluation/b.py": ""}, False),
        ({"dit/sampler.py": "import dit.denoiser\n", "dit/denoiser.py": ""}, True),
    ],
)
def test_a_room_imports_only_rooms_below_it(tmp_path, files, broken):
    write_tree(tmp_path, files)
    assert bool(room_violations(tmp_path)) == broken


@pytest.mark.parametrize(
    ("files", "broken"),
    [
        ({"app/commands/training.py": "TABLE = {'vae': ('training.train_vae', 'train')}\n"}, False),
        ({"app/commands/other.py": "def f():\n    import training.train_vae\n"}, True),
        ({"app/batch/b.py": "WORDS = 'training.train_vae'\n"}, True),
        ({"app/batch/b.py": "WORDS = 'training days'\n"}, False),
        ({"app/batch/b.py": "from importlib import import_module\nf = import_module\n"}, True),
    ],
)
def test_only_the_door_names_training_and_only_as_a_string(tmp_path, files, broken):
    write_tree(tmp_path, {"training/train_vae.py": "", **files})
    assert bool(door_violations(tmp_path)) == broken


def test_three_modules_in_a_circle_are_one_finding(tmp_path):
    files = {f"vae/{name}.py": f"import vae.{target}\n" for name, target in ("ab", "bc", "ca", "da")}
    write_tree(tmp_path, files)
    assert cycles(tmp_path) == [["vae.a", "vae.b", "vae.c"]]


def test_the_command_line_loads_no_training_code():
    code = "import sys, app.cli; app.cli.make_parser(); print([name for name in sys.modules if name[:8] == 'training'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
