"""What an error says in one line."""

from restorelcc.base.errors import first_line


def test_an_error_that_says_nothing_is_named_by_its_kind() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(OSError()) == "OSError"
    assert first_line(ValueError("\n \n")) == "ValueError"
