"""A real head for the tests of a module, and two sessions in it for each test."""

import pytest

from tests.unit.client.systems import system


@pytest.fixture(scope="module")
def head():
    with system() as head:
        yield head


@pytest.fixture
def rk(head):
    with head.session() as session:
        yield session


@pytest.fixture
def other(head):
    with head.session() as session:
        yield session
