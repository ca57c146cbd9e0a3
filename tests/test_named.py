"""Weights by name: turns, refusals, and what an engine's state says. The model here is a note of what was loaded."""

from __future__ import annotations

import threading
import time

import pytest
from dspy import lm15

from colever.engines.named import NamedWeights
from colever.types import Weights

ONE, TWO = Weights("full", "/one", "111"), Weights("lora", "/two", "222")


class Model:
    def __init__(self) -> None:
        self.held = Weights()

    def load(self, weights: Weights) -> None:
        self.held = weights


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def named(model) -> NamedWeights:
    return NamedWeights("toy", model.load)


def test_a_name_brings_its_weights_in(named, model):
    first, second = named.name(ONE), named.name(TWO)
    assert (first, second) == ("colever/toy@111", "colever/toy@222")
    for name, weights in ((first, ONE), (second, TWO), ("colever/toy@base", Weights()), (first, ONE)):
        with named.turn(name):
            assert model.held == weights
    with named.turn("colever/toy"):
        assert model.held == ONE  # no name: whatever is there


def test_an_unknown_name_says_what_is_known(named):
    named.name(ONE)
    with pytest.raises(lm15.UnsupportedModelError, match="accepted: 111, base"), named.turn("colever/toy@999"):
        pass


def test_requests_for_other_weights_wait_for_their_turn(named, model):
    seen, names = [], [named.name(ONE), named.name(TWO)]

    def ask(which: int) -> None:
        for _ in range(20):
            with named.turn(names[which]):
                before = model.held
                time.sleep(0.0005)
                seen.append(model.held == before == (ONE, TWO)[which])

    threads = [threading.Thread(target=ask, args=(i % 2,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(seen) == 120
    assert all(seen)


def test_training_in_place_refuses_others_and_lets_its_own_rollouts_through(named, model):
    name = named.name(ONE)
    with named.held():
        with named.turn("colever/toy"):
            pass
        with pytest.raises(lm15.InvalidRequestError, match="being trained in place"), named.turn(name):
            pass
        assert model.held == Weights()
    with named.turn(name):
        assert model.held == ONE


def test_a_run_that_would_wait_for_itself_is_refused(named):
    one, two = named.name(ONE), named.name(TWO)
    with named.turn(one):
        with named.turn(one, may_wait=False):
            pass
        refused = pytest.raises(lm15.InvalidRequestError, match="must use the same weights")
        with refused, named.turn(two, may_wait=False):
            pass


def test_names_survive_a_round_trip(named, model):
    named.name(ONE)
    other = NamedWeights("toy", model.load)
    other.restore(named.dump())
    assert other.find("colever/toy@111") == ONE
