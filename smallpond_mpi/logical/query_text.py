"""Node queries as text: `{0}`, `{1}` are inputs, doubled braces stand for themselves. Putting one query into another, renaming inputs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_QUERY_CHARS = 32 * 1024  # longer ones are hard to read in an error

TOKEN = re.compile(r"\{\{|\}\}|\{([\w@]+)\}")
COMMENTS = re.compile(r"(\s|--[^\n]*(\n|$)|/\*.*?\*/)*", re.DOTALL)
SELECT = re.compile(r"(select|from)\b", re.IGNORECASE)
WITH = re.compile(r"with(\s+recursive)?\b", re.IGNORECASE)
READS = re.compile(r"\b(from|join)\s+\Z", re.IGNORECASE)
FILE_NAME = "{output_filename}"


@dataclass(frozen=True, slots=True)
class Select:
    """A text that is a single SELECT: what comes before its first word, its WITH if it has one, and the rest."""

    prefix: str
    with_clause: str
    rest: str


def parsed(query: str) -> Select | None:
    """The text as one SELECT, or None if it could be anything else."""
    text = query.rstrip().rstrip(";")
    bare = TOKEN.sub("", text)
    if ";" in bare or "{" in bare or "}" in bare or FILE_NAME in text:
        return None
    start = COMMENTS.match(text)
    begin = start.end() if start else 0
    with_clause = WITH.match(text, begin)
    if with_clause:
        return Select(text[:begin], with_clause[0], text[with_clause.end() :])
    return Select(text[:begin], "", text[begin:]) if SELECT.match(text, begin) else None


def with_inputs(query: str, texts: Mapping[int, str]) -> str:
    """The query with `{i}` replaced by `texts[i]`, all else as it is."""

    def replaced(token: "re.Match[str]") -> str:
        field = token[1]
        return texts.get(int(field), token[0]) if field is not None and field.isdecimal() else token[0]

    return TOKEN.sub(replaced, query)


def shifted(query: str, by: int) -> str:
    """The query with its inputs renumbered."""
    numbers = {int(token[1]) for token in TOKEN.finditer(query) if token[1] is not None and token[1].isdecimal()}
    return with_inputs(query, {number: f"{{{number + by}}}" for number in numbers}) if by else query


def times_read(query: str, index: int) -> int:
    """How often an input stands for a table in a query (`{0}.column` does not)."""
    return sum(
        token[1] == str(index) and not re.match(r"\s*\.", query[token.end() :]) for token in TOKEN.finditer(query)
    )


def is_read_in_place(query: str, index: int) -> bool:
    """Whether a query reads an input after FROM or JOIN and names it nowhere else, so that a subquery may stand there."""
    (token, *others) = [token for token in TOKEN.finditer(query) if token[1] == str(index)]
    return not others and bool(READS.search(query, 0, token.start()))


def nested_query(
    outer: str,
    inner: str,
    name: str,
    position: int = 0,
    num_inner: int = 1,
    num_outer: int = 1,
    max_chars: int | None = MAX_QUERY_CHARS,
) -> str | None:
    """One query that reads the result of `inner` where `outer` reads `{position}`; None if that can't be said for sure.

    The inputs of `inner` take the place of that input: those of `outer` after it get higher numbers. `inner` becomes a subquery, which
    DuckDB binds in half the time, or a common table expression called `name` where `outer` names its input.
    """
    outer_select, inner_select = parsed(outer), parsed(inner)
    if outer_select is None or inner_select is None or times_read(outer, position) != 1:
        return None
    # The line breaks end a comment at the end of the inner query.
    inner_text = f"(\n{shifted(inner.rstrip().rstrip(';'), position)}\n)"
    later = {index: f"{{{index + num_inner - 1}}}" for index in range(position + 1, num_outer)}
    if is_read_in_place(outer, position):
        query = with_inputs(outer.rstrip().rstrip(";"), {position: inner_text} | later)
    else:
        table = f"{name} AS NOT MATERIALIZED {inner_text}"
        rest = with_inputs(outer_select.rest, {position: name} | later)
        with_clause = f"{outer_select.with_clause} {table}," if outer_select.with_clause else f"WITH {table}\n"
        query = outer_select.prefix + with_clause + rest
    return query if max_chars is None or len(query) <= max_chars else None
