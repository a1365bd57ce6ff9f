"""The floors of the house: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BELOW = {
    "vae": (),
    "captioning": ("vae",),
    "dit": ("captioning", "vae"),
    "training": ("dit", "captioning", "vae"),
    "app": ("dit", "captioning", "vae"),
}
FILES = [path for floor in BELOW for path in sorted((ROOT / floor).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """List the floors that a file imports by name, its own through relative imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found & BELOW.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lower_floors_never_import_upper_ones(path):
    floor = path.relative_to(ROOT).parts[0]
    assert imported(path) <= {floor, *BELOW[floor]}


def test_a_wrong_arrow_would_be_seen(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from training.loop import Course\n    import app.cli\n")
    assert imported(wrong) == {"training", "app"}


def test_no_file_is_too_long_to_read_in_one_sitting():
    long = {path.name: lines for path in FILES if (lines := len(path.read_text().splitlines())) > 400}
    assert not long


def test_an_export_needs_nothing_of_training():
    for floor in ("vae", "captioning", "dit", "app"):
        for path in (ROOT / floor).rglob("*.py"):
            assert "training" not in imported(path)
