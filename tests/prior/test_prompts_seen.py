"""What a prior does not see of a prompt is told, and a prompt of which it sees nothing fails its row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fake_prior import WORDS, make_prior
from fake_variants import make_concept, make_diffusers, make_single_file
from thirty_bad_rows import write_tetrahedron

from pipeline import cli
from pipeline.core.job import AdapterFile
from pipeline.core.location import InputFile
from pipeline.core.scene import View
from pipeline.optimize.prompts import PromptTable
from pipeline.prior.identity import EMBEDDED_FOLDER
from pipeline.prior.load import Prior, load_prior
from pipeline.prior.prompts import PromptReader, suffixes
from pipeline.prior.suggestions import suggest
from pipeline.prior.tokens import token_counters
from pipeline.prior.words import keep_known, known_words, names_known_content, split_words, surface_prompt

LONG = "a box with bands and boards and a ball and a block and a barrel and a box and a ball, "
LONG += LONG


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prior(tmp_path_factory.mktemp("prior"))


@pytest.fixture(scope="module")
def prior(folder: Path) -> Prior:
    return load_prior(folder)


def check(tmp_path: Path, rows: list[dict[str, str]], *options: str) -> int:
    write_tetrahedron(tmp_path / "box.obj")
    (tmp_path / "m.json").write_text(json.dumps([{"mesh": "box.obj", **row} for row in rows]))
    return cli.main(["check", str(tmp_path / "m.json"), *options])


def told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> list[str]:
    return [line.removeprefix(str(tmp_path / "m.json")) for line in capsys.readouterr().out.splitlines()[:-1]]


@pytest.mark.parametrize(
    ("text", "words", "seen"),
    [
        ("a red brick box", "a red brick box", "a red brick box"),
        ("it's a-red “brick” – box…", "it's a red brick box", "a red brick box"),
        ("一个红色的砖块", "一个红色的砖块", ""),
        ("赤いレンガ、の箱", "赤いレンガ の箱", ""),
        ("빨간 벽돌", "빨간 벽돌", ""),
        ("Красный кирпич", "красный кирпич", ""),
        ("κόκκινο τούβλο", "κόκκινο τούβλο", ""),
        ("हिन्दी ไทย", "हिन्दी ไทย", ""),
        ("🧱🧱🔥", "🧱🧱🔥", ""),
        ("a red brick 🧱", "a red brick 🧱", "a red brick"),
        ("red砖box", "red 砖 box", "red box"),
        ("rød café", "rød café", ""),
        # Full-width letters are the letters they stand for.
        ("Ａ　ｒｅｄ，ｂｒｉｃｋ", "a red brick", "a red, brick"),
    ],
)
def test_every_word_is_seen_or_told(text: str, words: str, seen: str) -> None:
    assert " ".join(split_words(text)) == words
    assert keep_known(EMBEDDED_FOLDER, text) == seen


def test_full_width_letters_name_a_surface_too() -> None:
    assert surface_prompt(EMBEDDED_FOLDER, "ａ ｍｏｓｓｙ ｓｔｏｎｅ ｏｂｊｅｃｔ") == "a mossy stone surface"


@pytest.mark.parametrize(
    ("prompt", "something"),
    [
        ("a red thing", True), ("oak", True), ("an old chair", True), ("ceramic tiles", True), ("moss covered", True),
        ("a thing", False), ("an object, front view", False), ("bark", False), ("a dark thing", False),
        ("une brique rouge", False), ("", False),
    ],
)  # fmt: skip
def test_what_says_something(prompt: str, something: bool, folder: Path, tmp_path: Path) -> None:
    assert names_known_content(EMBEDDED_FOLDER, prompt) == something
    # A list that does not tell its words by kind, and no list at all: nothing can be said.
    assert names_known_content(folder, prompt) and names_known_content(tmp_path, prompt)


@pytest.mark.parametrize(
    ("word", "other"),
    [("bark", "wood"), ("denim", "knit"), ("tartan", "checkered"), ("birck", "brick"), ("wodden", "wooden"),
     ("logs", "wood"), ("barrels", "barrel"), ("knight", ""), ("glorp", ""), ("砖", ""), ("x", "")],
)  # fmt: skip
def test_suggestions(word: str, other: str) -> None:
    known = known_words(EMBEDDED_FOLDER)
    assert known and suggest(word, known) == other


def test_every_suggestion_is_a_word_of_the_embedded_prior() -> None:
    from pipeline.prior.suggestions import SUGGESTIONS

    known = known_words(EMBEDDED_FOLDER) or frozenset()
    assert set(SUGGESTIONS.values()) <= known and not known & set(SUGGESTIONS)


TEXTS = ("", "a red brick box", LONG, "it's 12 boxes, <|endoftext|> x'll", "ｒｅｄ 红砖 🧱 café", "re-d   box\u00a0!?")


@pytest.mark.parametrize("kind", ["embedded", "words", "sd2", "sdxl", "file"])
def test_tokens_are_counted_as_the_priors_tokenizer_does(kind: str, folder: Path, tmp_path: Path) -> None:
    if kind in ("embedded", "words"):
        place = EMBEDDED_FOLDER if kind == "embedded" else folder
    else:
        place = make_diffusers(tmp_path / "p", "sd1" if kind == "file" else kind)
    if kind == "file":
        place = make_single_file(place, tmp_path / "m.safetensors", "sd1")
    loaded = load_prior(place, fitted=False)
    counters = token_counters(place.with_suffix("") if kind == "file" else place, place if kind == "file" else None)
    assert len(counters) == len(loaded.text.tokenizers) == (2 if kind == "sdxl" else 1)
    for counter, real in zip(counters, loaded.text.tokenizers, strict=True):
        assert counter.limit == real.model_max_length - 2
        for text in TEXTS:
            assert counter.count(text) == len(real(text, add_special_tokens=False).input_ids), text


def test_a_prompt_that_is_too_long_keeps_what_names_the_view(prior: Prior) -> None:
    long = "a red brick cube, a blue stone cube, a red cube"
    table = PromptTable(prior, long, "", view_words=True, close_up=True)
    front, back, close = table.text([View("front", False), View("back", False), View("side", True)]).states
    # Twelve tokens: two marks, seven words with a comma, and the view.
    assert torch.equal(front, prior.embed(["a red brick cube, a blue, front view"]).states[0])
    assert torch.equal(close, prior.embed(["a red brick cube, a blue, close up"]).states[0])
    assert not torch.equal(front, back)
    (warning,) = prior.prompt_warnings(long, "", suffixes(view_words=True, close_up=True))
    assert warning.startswith("prompt: it is longer than the 10 tokens that the prior") and "', front view'" in warning
    assert warning.endswith("its end is not seen: 'stone cube, a red cube'")


def test_a_prompt_that_fits_stays_as_it_is(prior: Prior) -> None:
    for text in ("a red cube", "a  red,cube ;", "x" * 500, "", "a red brick cube, a blue,"):
        assert prior.fit_prompt(text, ", front view") == text
    assert prior.prompt_warnings("a red cube", "blue", suffixes(view_words=True, close_up=True)) == []


def test_a_text_without_blanks_is_cut_by_letters(tmp_path: Path) -> None:
    reader = PromptReader("p", make_prior(tmp_path, words=None))
    fitted = reader.fit("砖" * 50, ", close up")
    assert 0 < len(fitted) < 50 and reader.review("砖" * 50, [", close up"]).unseen == "砖" * (50 - len(fitted))


def test_learned_words_count_and_are_known(prior: Prior, tmp_path: Path) -> None:
    make_concept(tmp_path / "toy.safetensors", prior.text.widths, "<toy>", vectors=6)
    toy = prior.adapters([AdapterFile("concept", InputFile(tmp_path / "toy.safetensors"))])
    assert prior.fit_prompt("a <Toy> red cube", ", close up", toy) == "a <Toy>"
    assert prior.fit_prompt("a red cube", ", close up", toy) == "a red cube"
    assert prior.prompt_warnings("<toy>", "", [], toy) == []
    assert "does not know: toy" in prior.prompt_warnings("<toy>", "", [])[0]
    embedded = PromptReader("p", EMBEDDED_FOLDER)
    assert embedded.is_empty("a <toy>") and not embedded.is_empty("a <toy>", {"<toy>": 1})


def test_check_tells_the_unseen_end_and_rows_that_look_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"id": "l1", "prompt": LONG + "a red brick box"},
        {"id": "l2", "prompt": LONG + "a blue marble box"},
        {"id": "l3", "prompt": LONG + "a blue marble box", "negative_prompt": LONG},
        {"id": "l4", "prompt": "a red glorp box"},
        {"id": "l5", "prompt": "a red gleep box"},
    ]
    assert check(tmp_path, rows) == 0
    lines = told(capsys, tmp_path)
    end = "it is longer than the 22 tokens that the prior 'embedded' takes"
    assert [line.split("; its end")[0].split("; ")[0] for line in lines] == [
        f":1: prompt: warning: {end} (', front view' among them)",
        f":2: prompt: warning: {end} (', front view' among them)",
        ":2: prompt: warning: to the prior it is the same as that of row 1",
        f":3: prompt: warning: {end} (', front view' among them)",
        f":3: negative_prompt: warning: {end}",
        ":4: prompt: warning: the prior 'embedded' does not know: glorp",
        ":5: prompt: warning: the prior 'embedded' does not know: gleep",
        ":5: prompt: warning: to the prior it is the same as that of row 4",
    ]


def test_a_prompt_of_which_nothing_is_known_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["一个红色的砖块", "赤いレンガの箱", "🧱🧱🔥", "a red brick 🧱", "빨간 벽돌", "une brique rouge", "bark"]
    rows = [{"prompt": prompt, "negative_prompt": "模糊" if prompt == "bark" else ""} for prompt in prompts]
    assert check(tmp_path, rows) == 2
    lines = told(capsys, tmp_path)
    nothing = "the prior 'embedded' knows no material, object or colour in it (it does not know: "
    assert [line.partition(nothing)[0] for line in lines if nothing in line] == [
        f":{n}: prompt: " for n in (1, 2, 3, 5, 6, 7)
    ]
    assert ":4: prompt: warning: the prior 'embedded' does not know: 🧱" in lines
    assert lines[-2].endswith(
        "bark (try 'wood')); name one, or give --allow-unknown to build it with the remaining words"
    )
    assert lines[-1] == ":7: negative_prompt: warning: the prior 'embedded' does not know: 模糊"
    assert check(tmp_path, rows, "--allow-unknown") == 0
    lines = told(capsys, tmp_path)
    assert all(": warning: " in line for line in lines) and sum(nothing in line for line in lines) == 6


def test_priors_that_take_any_text_are_told_of_length_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    any_words = make_prior(tmp_path / "prior", words=None)
    rows = [{"prompt": "砖"}, {"prompt": "bark"}, {"prompt": " ".join(WORDS)}]
    assert check(tmp_path, rows, "--prior", str(any_words)) == 0
    (line,) = told(capsys, tmp_path)
    assert line.startswith(":3: prompt: warning: it is longer than the 10 tokens")


def test_such_a_row_fails_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(tmp_path, [{"id": "a", "prompt": "bark"}, {"id": "b", "prompt": "oak"}])
    command = [str(tmp_path / "m.json"), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert cli.main(["plan", *command]) == 1
    assert [line.split("\t")[:2] for line in capsys.readouterr().out.splitlines()[:2]] == [
        ["a", "blocked"], ["b", "build"],
    ]  # fmt: skip
    assert cli.main(["plan", *command, "--allow-unknown"]) == 0
    assert cli.main(["run", *command, "--only", "a"]) == 1
    failure = json.loads((tmp_path / "out/a/failure.json").read_text())
    assert failure["stage"] == "plan" and "bark (try 'wood')" in failure["message"]
    assert cli.main(["run", *command, "--dry-run"]) == 1
    assert cli.main(["run", *command, "--dry-run", "--allow-unknown"]) == 0
    assert cli.main(["run", *command, "--strict"]) == 2


def test_check_tells_of_concepts_that_are_not_called_or_hide_a_word(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, word in (("a", "<toy>"), ("b", "Brick")):
        make_concept(tmp_path / f"{name}.safetensors", [16], word)
    rows = [{"prompt": "a <toy>", "concept": "a.safetensors"}, {"prompt": "a brick", "concept": "a.safetensors"}]
    rows += [{"prompt": "a brick", "concept": "b.safetensors"}]
    assert check(tmp_path, rows, "--prior", str(folder)) == 0
    assert told(capsys, tmp_path) == [
        ":2: concept: warning: the concept '<toy>' is not in the prompt, so it changes nothing; "
        "write its word into the prompt",
        f":3: concept: warning: the concept 'brick' takes the place of a word that the prior '{folder}' knows",
    ]
