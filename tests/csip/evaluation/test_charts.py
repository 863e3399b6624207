import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from csip.evaluation.charts import Curve, as_picture, line_chart

LABELS = {"title": "Loss", "x_label": "epoch", "y_label": "nats"}
VALUES = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf, 0.0]))


def draw(*curves, **options):
    return ElementTree.fromstring(line_chart(curves, **{**LABELS, **options}))


def texts(svg):
    return [element.text for element in svg.iter("text")]


def polylines(svg):
    return [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in svg.iter("polyline")
    ]


def test_values_lie_where_the_axes_say():
    # Plot area at width 460, height 290 and one row of legend: x from 54 to 446, y from 244 (bottom) to 44.
    (line,) = polylines(draw(Curve("a", (1, 2, 3), (0, 50, 100)), y_limits=(0, 100)))
    assert line == [(54, 244), (250, 144), (446, 44)]


def test_the_chart_names_its_axes_its_curves_and_its_values_in_words():
    svg = draw(Curve("image", (1, 2), (4, 1)), Curve("skeleton", (1, 2), (3, 2)))
    assert {"epoch", "nats", "image", "skeleton"} <= set(texts(svg))
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == "Loss: nats over epoch. image: from 4 to 1. skeleton: from 3 to 2."


def test_curves_differ_in_more_than_colour():
    svg = draw(*(Curve(str(i), (1, 2), (i, i)) for i in range(6)))
    dashes = [line.get("stroke-dasharray", "solid") for line in svg.iter("polyline")]
    assert len(set(dashes)) == 6


def test_ticks_are_round_numbers_and_whole_epochs():
    svg = draw(Curve("a", range(1, 31), [2 + i / 10 for i in range(30)]))
    ticks = [text for text in texts(svg) if re.fullmatch(r"[\d.,]+", text)]
    # The values 2.0 to 4.9 start nearer zero than half of the top: the axis starts at zero.
    assert ticks == ["0", "1", "2", "3", "4", "5", "1", "10", "20", "30"]


def test_the_axis_does_not_start_at_zero_where_that_would_hide_the_change():
    assert "0.900" not in texts(draw(Curve("a", (1, 2), (0.9, 0.95))))
    assert {"0.90", "0.95"} <= set(texts(draw(Curve("a", (1, 2), (0.9, 0.95)))))


def test_nan_and_infinity_leave_gaps():
    svg = draw(Curve("a", (1, 2, 3, 4, 5), (1, 2, math.nan, 3, 4)), Curve("b", (1, 2, 3), (1, math.inf, 2)))
    assert [len(line) for line in polylines(svg)] == [2, 2]
    assert len(list(svg.iter("circle"))) == 6


def test_one_point_is_a_dot():
    svg = draw(Curve("a", (3,), (2.5,)))
    assert polylines(svg) == []
    assert len(list(svg.iter("circle"))) == 1


@pytest.mark.parametrize("curves", [(), (Curve("a", (), ()),), (Curve("a", (1,), (math.nan,)),)])
def test_a_chart_without_points_says_so(curves):
    assert "no data" in texts(draw(*curves))


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_equal_values_lie_in_the_middle(value):
    (line,) = polylines(draw(Curve("a", (1, 2), (value, value))))
    assert {y for _, y in line} == {144.0}


@given(st.lists(VALUES, max_size=8), st.booleans())
@example([0.0, 5e-324], False)
@example([3e-323, 3e-323], False)
def test_any_values_give_a_picture_inside_its_bounds(values, whole_x):
    svg = draw(Curve("a", range(len(values)), values), whole_x=whole_x)
    for line in polylines(svg):
        assert all(0 <= x <= 460 and 0 <= y <= 290 for x, y in line)


def test_names_cannot_become_markup():
    evil = '</svg><script>alert("1")</script>&'
    drawing = line_chart([Curve(evil, (1, 2), (1, 2))], title=evil, x_label=evil, y_label=evil)
    svg = ElementTree.fromstring(drawing)
    assert "<script" not in drawing
    assert [text for text in texts(svg) if text == evil] == [evil] * 3
    assert evil in svg.get("aria-label")


def test_many_points_are_drawn_without_dots():
    assert list(draw(Curve("a", range(1000), range(1000))).iter("circle")) == []


def test_a_long_legend_wraps_and_makes_room():
    svg = draw(*(Curve(f"a curve with a long name {i}", (1, 2), (0, 1)) for i in range(3)), y_limits=(0, 1))
    rows = {element.get("y") for element in svg.find("g").iter("text")}
    assert len(rows) == 2
    assert min(y for line in polylines(svg) for _, y in line) == 64


def test_positions_and_values_must_be_as_many():
    with pytest.raises(ValueError, match="Curve a: got 2 positions and 1 values"):
        Curve("a", (1, 2), (1,))


def test_a_picture_of_a_chart_is_a_whole_file_with_a_ground_and_colours_of_its_own():
    chart = line_chart([Curve("a", (1, 2, 3), (0, 50, 100))], y_limits=(0, 100), **LABELS)
    # An XML parser that knows of namespaces takes it, as a browser does that shows it as a picture.
    picture = ElementTree.fromstring(as_picture(chart))
    name = "{http://www.w3.org/2000/svg}"
    assert picture.tag == f"{name}svg"
    style, ground, inner = picture
    assert ".grid{stroke:" in style.text
    # 460 by 290, and 14 on each side.
    assert [picture.get(side) for side in ("width", "height")] == ["488", "318"]
    assert [ground.get(one) for one in ("width", "height", "fill")] == ["488", "318", "#fff"]
    assert [inner.get(one) for one in ("x", "y", "width", "height")] == ["14", "14", "460", "290"]
    (line,) = inner.iter(f"{name}polyline")
    assert line.get("points") == "54.0,244.0 250.0,144.0 446.0,44.0"
