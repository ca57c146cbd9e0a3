"""What every kind of locks promises: subclass ``LocksConformance`` and give it two parties."""

from __future__ import annotations

import threading

import pytest

from colever.locks import Locks


class LocksConformance:
    """``one`` and ``other`` are what two processes would have."""

    @pytest.fixture
    def one(self) -> Locks:
        raise NotImplementedError

    @pytest.fixture
    def other(self) -> Locks:
        raise NotImplementedError

    def test_one_at_a_time_holds_a_name(self, one: Locks, other: Locks) -> None:
        mine, theirs = one.lock("rounds/k1.lock"), other.lock("rounds/k1.lock")
        assert mine.take()
        assert not theirs.take()
        assert other.lock("rounds/k2.lock").take()
        mine.release()
        assert theirs.take()
        assert not mine.take()

    def test_two_locks_of_one_party_exclude_each_other(self, one: Locks) -> None:
        first, second = one.lock("a"), one.lock("a")
        assert first.take()
        assert not second.take()

    def test_a_lock_may_be_taken_again_by_who_holds_it(self, one: Locks, other: Locks) -> None:
        lock = one.lock("a")
        with lock:
            with lock:
                assert not other.lock("a").take()
            assert not other.lock("a").take()
        assert other.lock("a").take()

    def test_a_lock_is_let_go_of_where_the_block_fails(self, one: Locks, other: Locks) -> None:
        with pytest.raises(KeyError), one.lock("a"):
            raise KeyError
        assert other.lock("a").take()

    def test_who_waits_is_told_and_then_has_it(self, one: Locks, other: Locks) -> None:
        told, had, mine = threading.Event(), threading.Event(), one.lock("a")

        def wait() -> None:
            lock = other.lock("a")
            lock.wait(told.set)
            had.set()
            lock.release()

        thread = threading.Thread(target=wait)
        with mine:
            thread.start()
            assert told.wait(60)
            assert not had.is_set()
        thread.join(60)
        assert had.is_set()

    def test_many_who_write_at_once_write_one_after_the_other(self, one: Locks, other: Locks) -> None:
        inside, most, total = [0], [0], [0]

        def work(locks: Locks) -> None:
            lock = locks.lock("writer")
            for _ in range(5):
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    total[0] += 1
                    inside[0] -= 1

        threads = [threading.Thread(target=work, args=(locks,)) for locks in (one, other, one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert (most[0], total[0]) == (1, 20)

    def test_names_are_found_by_how_they_begin(self, one: Locks, other: Locks) -> None:
        names = {"s/worker-1": one, "s/worker-12": other, "s/writer": one, "t/worker-1": other}
        kept = [locks.lock(name) for name, locks in names.items()]  # one that is no longer referred to may be let go of
        assert all(lock.take() for lock in kept)
        left = other.lock("s/worker-3")
        assert left.take()
        left.release()
        assert sorted(one.held("s/worker-")) == sorted(other.held("s/worker-")) == ["s/worker-1", "s/worker-12"]
        assert one.held("s/trial-") == []

    def test_a_note_is_read_by_others_while_the_lock_is_held(self, one: Locks, other: Locks) -> None:
        lock = one.lock("s/worker-1")
        assert lock.take()
        assert other.notes("s/worker-") == {}
        lock.note({"rollouts": 3})
        lock.note({"rollouts": 4, "where": "é_%"})
        assert other.notes("s/worker-") == {"s/worker-1": {"rollouts": 4, "where": "é_%"}}
        lock.release()
        assert other.notes("s/worker-") == {}
        assert other.lock("s/worker-1").take()
        other.tidy("s/worker-")
        assert one.notes("s/worker-") == {}

    def test_a_lock_that_is_held_passes_its_check(self, one: Locks) -> None:
        with one.lock("a") as lock:
            lock.check()
