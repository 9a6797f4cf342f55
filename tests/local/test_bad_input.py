"""Bad input under plain python."""

from tests.bad_input import BadInput


class TestAlone(BadInput):
    ranks = 1
