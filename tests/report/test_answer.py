"""The answer is one record: the terminal, the page, Markdown and LaTeX say the same of it, in the same order."""

import html
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mixersweep.report import Report, build
from mixersweep.report.answer import answer
from mixersweep.report.claims import Claim
from mixersweep.report.terminal import show
from mixersweep.report.verdicts import Finding
from tests.report.sweeps import write_search, write_sweep


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """S-Mixers that lose 30 points per doubling of the width, and better SW-MLPs whose rates were not searched."""

    def level(model: str, width: int, seed: int) -> float:
        return 0.6 - 0.3 * np.log2(width / 700) if model == "s_mixer" else 0.8

    place = tmp_path_factory.mktemp("answer")
    write_sweep(place / "runs", level, models=("s_mixer", "sw_mlp"))
    write_search(place / "runs", models=("s_mixer",))
    return build([place / "runs"], out=place / "out")


def in_terminal(made: Report) -> str:
    stream = io.StringIO()
    show(made, "width", "accuracy", stream)
    return stream.getvalue()


def on_page(made: Report) -> str:
    assert made.page is not None
    text = made.page.read_text()
    return html.unescape(re.sub(r"<[^>]+>", " ", text[text.index("<main>") : text.index("<h2>Figures")]))


FORMS: dict[str, Callable[[Report], str]] = {
    "text": lambda made: made.answer,
    "terminal": in_terminal,
    "page": on_page,
    "markdown": lambda made: made.markdown.replace("**", ""),
    "latex": lambda made: re.sub(r"\\textbf\{(.*?)\}", r"\1", made.latex.replace("\\_", "_").replace("$-$", "−")),
}


def words(text: str) -> str:
    return " ".join(re.sub(r"[^\w.+−]", " ", text).split())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_caveats_then_verdicts_then_numbers_then_the_rest(made: Report, form: str) -> None:
    said, text = answer(made.all_statistics[0]), words(FORMS[form](made))
    assert said.first[0] == "learning rates of sw_mlp were not searched"
    assert said.first[1].startswith("of the 6 points, those of lower training loss have higher test accuracy")
    told = [*said.first, *said.width.lines, *said.structure.lines, said.numbers.texts[0][0]]
    places = [text.find(words(line)) for line in told]
    assert -1 not in places and places == sorted(places)
    assert words(said.numbers.note) in text
    if form != "text":
        assert all(text.find(words(line), places[-1]) > 0 for line in said.rest)


def test_a_verdict_is_what_the_test_says_and_why_in_few_words(made: Report) -> None:
    (main,) = made.all_statistics
    said = answer(main)
    falling, flat = said.width.verdicts
    (pair,) = said.structure.verdicts
    assert [falling.finding, flat.finding, pair.finding] == [Finding.WORSE, Finding.NOT_CLAIMED, Finding.BETTER]
    assert re.fullmatch(
        r"s_mixer \(tall\): wider is worse, −\d+\.\d points from 696 to 1,024; what else .*", falling.line
    )
    assert flat.line == "sw_mlp: not claimed, no learning rate was searched"
    assert re.match(r"sw_mlp and s_mixer: sw_mlp is better, by \d+\.\d points; sizes differ by up to", pair.line)
    claim, numbers = main.pairs[0], pair.numbers
    assert (claim.first, numbers["of"]) == ("s_mixer", "sw_mlp minus s_mixer at 3 widths")
    low, high = claim.difference.interval
    assert (numbers["value"], numbers["interval"]) == (-claim.difference.value, (-high, -low))
    assert (numbers["p_holm"], numbers["n"], numbers["seeds"]) == (claim.p_holm, 15, 5)


def test_what_is_claimed_has_an_effect() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Claim()


@pytest.mark.parametrize("form", FORMS)
def test_what_one_seed_cannot_decide_is_one_line_for_all(tmp_path: Path, form: str) -> None:
    write_sweep(tmp_path / "runs", lambda *_: 0.7, models=("s_mixer", "rp_s_mixer", "sw_mlp"), seeds=(0,))
    once = build([tmp_path / "runs"], out=tmp_path / "out")
    text = words(FORMS[form](once))
    assert words("all 3 pairs of models: one seed decides nothing") in text
    assert words("all 3 models: one seed decides nothing") in text
    assert text.count("one seed decides nothing") == 2
    assert words("s_mixer minus sw_mlp") in text, "the numbers are all there"
