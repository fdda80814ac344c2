"""What a refusal looks like: a `UserError` of one line, in a table or in a `with` block."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from pe_core.errors import UserError


@contextmanager
def refused(kind: type[Exception], words: str, *, whole: bool = False) -> Iterator[None]:
    """Expect a user's error of this kind that says these words, or nothing else, in one line.

    Args:
        kind: the built-in exception that it is as well.
        words: plain text, not a pattern; `...` stands for anything.
        whole: whether the words are the whole line.
    """
    pattern = ".*".join(map(re.escape, words.split("...")))
    with pytest.raises(kind, match=pattern) as caught:
        yield
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    assert not whole or re.fullmatch(pattern, str(caught.value))


def each_refusal(table: Mapping[type[Exception], Mapping[str, Any]]) -> pytest.MarkDecorator:
    """Parametrise over `kind`, `words` and `what`: the rows {kind: {words: what is refused}}."""
    rows = [(kind, words, what) for kind, rows in table.items() for words, what in rows.items()]
    return pytest.mark.parametrize(
        ("kind", "words", "what"), rows, ids=[words[:60] for _, words, _ in rows]
    )
