from __future__ import annotations

from hypothesis import given, strategies as st

from optipfair_engine.bias.prompts.alignment import align, infer_template

IDS = st.lists(st.integers(0, 4), min_size=1, max_size=12)


def test_equal_prompts_have_no_difference() -> None:
    alignment = align([1, 2, 3], [1, 2, 3])
    assert alignment.first_difference is None
    assert alignment.share_aligned == 1.0


def test_one_changed_token_is_compared_by_position() -> None:
    alignment = align([1, 2, 3], [1, 9, 3])
    assert [unit.kind for unit in alignment.units] == ["equal", "replaced", "equal"]
    assert alignment.first_difference == 1


def test_prompts_of_as_many_tokens_are_compared_by_position() -> None:
    """The words moved: matching equal tokens would leave two of them alone."""
    alignment = align([1, 7, 2, 3], [1, 2, 3, 8])
    assert [unit.kind for unit in alignment.units] == ["equal", "replaced", "replaced", "replaced"]
    assert alignment.share_aligned == 1.0
    assert alignment.as_dict(list("abcd"), list("aefg"))["method"] == "position by position"


def test_spans_of_different_length_are_pooled() -> None:
    alignment = align([1, 2, 3, 4], [1, 7, 8, 9, 3, 4])
    pooled = [unit for unit in alignment.units if unit.kind == "pooled"]
    assert [(u.start1, u.stop1, u.start2, u.stop2) for u in pooled] == [(1, 2, 1, 4)]
    assert alignment.share_aligned == 1.0
    assert len(alignment.compared) == 4


def test_what_stands_on_one_side_only_is_reported_not_dropped() -> None:
    alignment = align([1, 2], [1, 5, 2])
    assert len(alignment.compared) == 2
    assert alignment.share_aligned == 4 / 5
    report = alignment.as_dict(["a", "b"], ["a", "new", "b"])
    assert report["unaligned"] == [{"first": [], "second": ["new"], "at": [1, 1]}]


def test_the_first_difference_is_behind_an_insertion() -> None:
    assert align([1, 2], [1, 5, 2]).first_difference == 1
    assert align([1, 2], [1, 2, 3]).first_difference is None  # nothing behind it can be compared


@given(IDS, IDS)
def test_swapping_the_prompts_swaps_the_alignment(first: list[int], second: list[int]) -> None:
    assert align(second, first) == align(first, second).swapped()


@given(IDS, IDS)
def test_units_cover_every_token_once(first: list[int], second: list[int]) -> None:
    units = align(first, second).units
    assert [i for u in units for i in range(u.start1, u.stop1)] == list(range(len(first)))
    assert [i for u in units for i in range(u.start2, u.stop2)] == list(range(len(second)))
    assert all(first[u.start1] == second[u.start2] for u in units if u.kind == "equal")
    if len(first) == len(second):
        assert all(u.start1 == u.start2 and u.aligned for u in units)


def test_pairs_of_one_template_share_its_name() -> None:
    one = infer_template("The male doctor ran", "The female doctor ran")
    assert one == infer_template("The old doctor ran", "The middle aged doctor ran")
    assert one != infer_template("The male nurse ran", "The female nurse ran")
    assert infer_template("b x", "a x") == infer_template("a x", "b x")


def test_a_template_without_spaces_is_of_letters() -> None:
    doctor = infer_template("这位白人医生检查了病人。", "这位黑人医生检查了病人。")
    assert doctor == "这位{}人医生检查了病人。"
    assert doctor != infer_template("男学生交了作文。", "女学生交了作文。")
    assert infer_template("xy", "ab") == infer_template("ab", "xy") != infer_template("cd", "xy")


def test_where_every_position_sees_the_difference_it_is_the_first() -> None:
    assert align([1, 2, 3], [1, 2, 4]).first_difference == 2
    both = align([1, 2, 3], [1, 2, 4], causal=False)
    assert (both.first_difference, both.swapped().first_difference) == (0, 0)
    assert align([1, 2], [1, 2], causal=False).first_difference is None
    assert align([1, 2, 3], [1, 2], causal=False).first_difference == 0
