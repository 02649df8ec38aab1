"""Tables for people line up, whatever is in them."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.table import render

cells = st.one_of(st.none(), st.integers(), st.booleans(), st.floats(), st.text("ab ", max_size=6))


def test_numbers_stand_to_the_right_and_text_to_the_left():
    """Floats with one decimal and thousands apart; nothing is a dash."""
    text = render(["name", "watts", "n"], [["a", 1234.56, 1], ["long", None, 22]])
    assert text.split("\n") == [
        "name    watts   n",
        "a     1,234.6   1",
        "long        -  22",
    ]


def test_a_column_with_one_word_is_text():
    """A yes among numbers is not right-aligned."""
    assert render(["x"], [[True], [10]]).split("\n") == ["x", "True", "10"]


def test_without_rows_the_names_remain():
    """An empty result is still a table."""
    assert render(["a", "b"], []) == "a  b"


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), max_size=5).map(
            lambda rows: (n, rows)
        )
    )
)
def test_every_row_is_a_line_with_no_blanks_at_its_end(sized):
    """Lines can be compared and cut."""
    count, rows = sized
    lines = render([f"c{i}" for i in range(count)], rows).split("\n")
    assert len(lines) == len(rows) + 1
    assert all(line == line.rstrip() for line in lines)
