"""Which examples an update draws: each once an epoch, or the informative ones more often."""

from __future__ import annotations

from colever.optimizers.curriculum import SPENT, by_signal, remember

EXAMPLES = [(f"train-{i}", i) for i in range(20)]


def test_without_a_past_all_are_drawn_alike():
    drawn = [name for update in range(2000) for name, _ in by_signal(EXAMPLES, 4, 0, update, {})]
    share = {name: drawn.count(name) / 2000 for name, _ in EXAMPLES}
    assert all(0.15 < s < 0.25 for s in share.values())


def test_spent_examples_are_drawn_less_and_never_twice():
    spent = {f"train-{i}": True for i in range(10)}
    picks = [by_signal(EXAMPLES, 4, 0, update, spent) for update in range(2000)]
    assert all(len({name for name, _ in pick}) == 4 for pick in picks)
    drawn = sum(spent.get(name, False) for pick in picks for name, _ in pick)
    assert 0.8 * SPENT < drawn / (8000 - drawn) < 1.5 * SPENT


def test_a_draw_is_a_function_of_seed_update_and_past():
    spent = {"train-3": True}
    assert by_signal(EXAMPLES, 4, 1, 2, spent) == by_signal(EXAMPLES, 4, 1, 2, dict(spent))
    assert by_signal(EXAMPLES, 4, 1, 2, spent) != by_signal(EXAMPLES, 4, 2, 2, spent)


def test_a_group_with_two_rewards_makes_an_example_informative_again():
    spent = {"a": True}
    remember(spent, ["a", "b"], ["a"])
    assert spent == {"a": False, "b": True}
