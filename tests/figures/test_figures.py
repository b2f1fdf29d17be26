"""Figures share one frame and one palette, and the page takes its colours there."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from mixersweep.families import FAMILIES
from mixersweep.figures import frame, looks_of, save, ticked
from mixersweep.figures.palette import DARK, LIGHT, SHAPES, SPARE, css


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_the_same_numbers_are_the_same_bytes(tmp_path: Path, kind: str) -> None:
    paths = [tmp_path / f"{name}.{kind}" for name in ("one", "other")]
    for path in paths:
        with frame("lines", 4.0, 3.0) as drawing:
            axes = drawing.add_subplot()
            axes.plot([1, 2, 3], [2, 1, 3], label="s_mixer", **looks_of(["s_mixer"])["s_mixer"].line())
            drawing.legend()
            save(drawing, "Lines", [path])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_every_marker_of_a_figure_can_be_drawn_on_the_page() -> None:
    drawn = {family.look.marker for family in FAMILIES.values()} | {marker for _, marker, _ in SPARE}  # type: ignore[attr-defined]
    assert drawn <= set(SHAPES)
    assert len(set(SHAPES.values())) == len(SHAPES)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("behind", ["paper", "tint"])
@pytest.mark.parametrize("name", ["ink", "soft", "accent", "better", "worse"])
def test_text_is_readable_by_day_and_by_night(scheme: dict[str, str], behind: str, name: str) -> None:
    light, dark = sorted((luminance(scheme[name]), luminance(scheme[behind])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_page_has_no_colours_of_its_own() -> None:
    parts = files("mixersweep.report")
    for name in ("page.css", "page.js"):
        assert not re.findall(r"#[0-9a-f]{6}\b", (parts / name).read_text())
    used = set(re.findall(r"var\(--([a-z]+)\)", (parts / "page.css").read_text()))
    assert used == set(LIGHT) == set(DARK) and all(f"--{name}: {LIGHT[name]};" in css() for name in used)


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0"), (1234.0, "1,234"), (0.05, "0.05"), (2e6, "2·10⁶"), (1e-5, "10⁻⁵"), (512, "512")]
)
def test_numbers_at_an_axis(value: float, said: str) -> None:
    assert ticked(value) == said
