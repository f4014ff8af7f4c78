"""What is said about a change, in words and in the terminal."""

import io
import re

import pytest
from rich.console import Console

from faap.report import summary
from faap.report.words import gap_sentence, group_sentence, last_part, number, p_value


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (-0.00761, {"sign": True}, "−0.0076"),
        (0.00761, {"sign": True}, "+0.0076"),
        (-0.00001, {"sign": True}, "0.0000"),
        (0.0024, {"digits": 3}, "0.002"),
        (None, {}, "–"),
        (float("nan"), {}, "–"),
        (float("inf"), {}, "–"),
    ],
)
def test_numbers(value, options, text):
    assert number(value, **options) == text


def said(metrics, anchor_ap, reference_ap, ci95=(-0.03, -0.01)):
    data = metrics(anchor_ap=anchor_ap, reference_ap=reference_ap)
    data["gap"]["AP"]["ci95"] = list(ci95)
    return gap_sentence(data, "female", "male") + " " + group_sentence(data, "female", "male")


@pytest.mark.parametrize(
    ("anchor_ap", "reference_ap", "words"),
    [
        (
            (0.40, 0.42),
            (0.50, 0.50),
            ["decreased from 0.1000 to 0.0800", "mostly because female images are found better"],
        ),
        ((0.40, 0.401), (0.50, 0.48), ["decreased", "mostly because male images are found less well"]),
        ((0.40, 0.39), (0.50, 0.47), ["decreased", "both groups are found less well than before"]),
        ((0.40, 0.40), (0.50, 0.53), ["increased from 0.1000 to 0.1300", "stayed at 0.4000", "rose from 0.5000"]),
        ((0.40, 0.53), (0.50, 0.50), ["decreased", "and now points the other way"]),
        ((0.40, 0.75), (0.50, 0.50), ["increased", "and now points the other way"]),
        ((0.50, 0.50), (0.40, 0.35), ["increased in size from −0.1000 to −0.1500"]),
        ((0.40, 0.65), (0.50, 0.50), ["increased in size from 0.1000 to −0.1500"]),
        ((0.40, 0.42), (0.40, 0.40), ["increased in size from 0.0000 to −0.0200 (−0.0200);"]),
        ((0.40, 0.40), (0.50, 0.50), ["stayed at 0.1000"]),
        # of a gap below zero the reference group is the one that is found worse
        ((0.50, 0.45), (0.40, 0.40), ["decreased in size", "mostly because female images are found less well"]),
        ((0.50, 0.50), (0.40, 0.45), ["decreased in size", "mostly because male images are found better"]),
        ((0.50, 0.51), (0.40, 0.45), ["decreased in size", "mostly because male images are found better"]),
        ((0.50, 0.45), (0.40, 0.39999), ["stayed at 0.4000; the gap is smaller mostly because female images"]),
    ],
)
def test_what_happened_to_the_gap_and_the_groups(anchor_ap, reference_ap, words, metrics):
    text = said(metrics, anchor_ap, reference_ap)
    for phrase in words:
        assert phrase in text
    if "increased" in words[0]:
        assert "smaller" not in text


@pytest.mark.parametrize(
    ("before", "after", "ci95", "told"),
    [
        (0.1, -0.03, [-0.05, -0.01], True),
        (0.1, -0.03, [-0.05, 0.01], False),  # that may be chance
        (-0.1, 0.03, [0.01, 0.05], True),
        (0.1, -0.03, None, True),
        (0.1, -0.00001, [-0.00002, -0.000001], False),  # shown as 0.0000
        (0.1, -0.00001, None, False),
        (0.00001, -0.03, [-0.05, -0.01], False),
    ],
)
def test_a_gap_points_the_other_way_only_where_that_is_no_chance(before, after, ci95, told, metrics):
    data = metrics(anchor_ap=(0.4, 0.4), reference_ap=(0.4 + before, 0.4 + after))
    data["gap"]["AP"]["perturbed_ci95"] = ci95
    assert ("points the other way" in gap_sentence(data, "female", "male")) == told
    if ci95 is None:  # as earlier versions wrote it
        del data["gap"]["AP"]["perturbed_ci95"]
        assert ("points the other way" in gap_sentence(data, "female", "male")) == told


def test_a_p_value_is_never_zero(metrics):
    assert [p_value(value) for value in (None, 0.0002, 0.000999, 0.001, 0.25)] == [
        "–", "< 0.001", "< 0.001", "0.001", "0.250",
    ]  # fmt: skip
    data = metrics()
    assert "p = 0.002)" in gap_sentence(data, "female", "male")
    data["gap"]["AP"]["p_value"] = data["gaps"]["female"]["AP"]["p_value"] = 2 / 10001
    assert "p < 0.001)" in gap_sentence(data, "female", "male")
    console = Console(file=io.StringIO(), width=100)
    console.print(summary(data))
    assert re.search(r"AP gap \(male − female\) .* < 0\.001\n", console.file.getvalue())


@pytest.mark.parametrize(
    ("ci95", "told"), [((-0.02, -0.001), True), ((0.001, 0.02), True), ((-0.02, 0.001), False), ((0.0, 0.0), False)]
)
def test_noise_is_told_by_the_interval(ci95, told, metrics):
    text = said(metrics, (0.40, 0.41), (0.50, 0.50), ci95)
    assert ("is distinguishable from noise" in text) == told
    assert ("is not distinguishable from noise" in text) != told
    assert ("the gap is smaller mostly because" in text) == told


@pytest.mark.parametrize(
    ("bounds", "told"), [((-0.02, -0.001), True), ((-0.02, 0.001), False), ((-0.02, 0.0), False), (None, True)]
)
def test_that_both_groups_lose_is_told_by_the_intervals_of_both(bounds, told, metrics):
    data = metrics(anchor_ap=(0.40, 0.39), reference_ap=(0.50, 0.47))
    for group in ("female", "male"):
        changes = data["changes"] | {group: data["changes"][group] | {"AP": {"ci95": bounds and list(bounds)}}}
        text = group_sentence(data | {"changes": changes}, "female", "male")
        assert ("both groups are found less well" in text) == told


def test_terminal_summary(metrics):
    data = metrics("[b]old[/b]", "young")
    data["perturbed"]["young"]["AP50"] = None
    console = Console(file=io.StringIO(), width=100)
    console.print(summary(data))
    text = console.file.getvalue()
    assert "AP gap (young − [b]old[/b])" in text
    assert "−.0121 to −.0029" in text
    assert text.count("✓ met") == 1
    assert text.count("✗ not met") == 3
    for group in ("[b]old[/b]", "young"):
        for name in ("AP", "AP50", "AP75", "AR100"):
            assert f"{group} {name} " in text
    assert "600 [b]old[/b], 600 young images" in text


def test_terminal_summary_fits_eighty_columns(metrics):
    console = Console(file=io.StringIO(), width=80)
    console.print(summary(metrics()))
    text = console.file.getvalue()
    assert re.search(r"\nfemale AP +\.3446 +\.3489 +\+\.0043 +0\.190\n", text)
    assert re.search(r"\n +\.3351 to \.3541 +\.3347 to \.3631 +−\.0005 to \+\.0090 *\n", text)
    assert re.search(r"\nAP gap \(male − female\) +\.0978 +\.0902 +−\.0076 +0\.002\n", text)
    assert re.search(r"\.0883 to \.1073 +\.0760 to \.1045 +−\.0121 to −\.0029 *\n", text)
    assert "size ≤ 0.0919  ✓ met" in text


def test_the_terminal_shows_the_generators_beside_it_with_what_they_cost(metrics):
    data, other = metrics(), metrics(anchor_ap=(0.3446, 0.4311))
    other["provenance"]["generator"]["parameters"] = 344227
    other |= {"training": {"images": 200704, "seconds": 5400.0}, "warnings": ["Nobody is found."]}
    data["beside"] = {"[b]promenade": other}
    console = Console(file=io.StringIO(), width=120)
    console.print(summary(data))
    text = " ".join(console.file.getvalue().split())
    said = "the generator [b]promenade on the same images (344,227 parameters, trained on 200,704 images in 90 min)"
    assert text.index(".3489") < text.index(said) < text.index(".4311") < text.index("Nobody is found.")


def test_the_terminal_says_loudly_what_is_wrong_and_where_it_comes_from(metrics):
    data = metrics()
    data["warnings"] = ["Without the generator the detector finds nobody: right checkpoint? [right] class names?"]
    data["categories_left_out"] = {"dog": ["female"]}
    data["success"]["ap_gap"] |= {"verdict": "cannot be told", "met": False}
    console = Console(file=io.StringIO(), width=200, color_system="truecolor", force_terminal=True)
    console.print(summary(data))
    styled = console.file.getvalue()
    assert f"\x1b[1;31m{data['warnings'][0]}" in styled
    assert "? cannot be told" in styled
    assert "dog (female has none)" in styled
    assert "data: data/<people>, test split 1a1a1a1a1a1a…" in styled
    assert "generator: light, ε 0.09, 3c3c3c3c3c3c…" in styled
    assert "2026-01-02" in styled
    del data["provenance"], data["warnings"], data["categories_left_out"]
    console = Console(file=io.StringIO(), width=200)
    console.print(summary(data))
    assert "detector: 5f5f5f5f5f5f…" in console.file.getvalue()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/home/me/.cache/faap/promenade-23ec9ba83af9", "Promenade"),
        ("/data/promenade-2024", "promenade-2024"),
        ("org/detr/", "detr"),
        ("promenade", "promenade"),
    ],
)
def test_what_is_named_in_a_title(name, said):
    assert last_part(name) == said
