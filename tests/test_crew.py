"""Rows over threads: who takes the next block, and that no bit depends on it."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from benchmarks.poses import real
from skel_fit.crew import each, rows_over_threads
from skel_fit.default_body import default_body_directory
from skel_fit.fit import fit_skel
from skel_fit.model_files import load_skel, load_smpl
from skel_fit.recipe import FitConfig
from skel_fit.signs import signs_of_life

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_whoever_is_free_takes_the_next_one_and_results_keep_their_order(threads):
    threads(2)
    others = threading.Semaphore(0)
    seen = []

    def work(item: int) -> int:
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        if item:
            others.release()
            return -item
        # held up until the other thread has done three of four: no half is anybody's
        assert all(others.acquire(timeout=20) for _ in range(3))
        return 0

    with rows_over_threads():
        assert list(each(work, range(5), CPU)) == [0, -1, -2, -3, -4]
    assert len({name for name, _ in seen}) == 2
    assert {count for _, count in seen} == {1}
    assert torch.get_num_threads() == 2


def test_outside_and_on_a_device_the_caller_does_it_all(threads):
    threads(3)

    def here(_: int) -> str:
        return threading.current_thread().name

    mine = threading.current_thread().name
    assert set(each(here, range(4), CPU)) == {mine}
    with rows_over_threads():
        assert set(each(here, range(4), torch.device("meta"))) == {mine}
        assert set(each(here, range(1), CPU)) == {mine}
        assert mine not in set(each(here, range(4), CPU))


def test_an_error_ends_it_and_the_setting_comes_back(threads):
    threads(2)
    done = []

    def work(item: int) -> int:
        if item == 2:
            raise ArithmeticError("row 2")
        done.append(item)
        return item

    with pytest.raises(ArithmeticError, match="row 2"), rows_over_threads():
        list(each(work, range(1000), CPU))
    assert len(done) < 100
    assert torch.get_num_threads() == 2


def test_blocks_are_signs_of_life_in_the_thread_that_waits(threads):
    threads(2)
    heard = []

    def listen() -> None:
        heard.append(threading.current_thread().name)
        if len(heard) == 4:
            raise TimeoutError("nobody waits any longer")

    with signs_of_life(listen), rows_over_threads():
        assert list(each(lambda item: item, range(2), CPU)) == [0, 1]
        with pytest.raises(TimeoutError):
            list(each(lambda item: item, range(2), CPU))
    assert heard == [threading.current_thread().name] * 4
    assert list(each(lambda item: item, range(2), CPU)) == [0, 1] and len(heard) == 4


def test_who_is_inside_twice_or_beside_another_finds_the_setting_again(threads):
    threads(3)
    inside, leave = threading.Barrier(2), threading.Event()
    there = []

    def other() -> None:
        torch.set_num_threads(2)
        with rows_over_threads():
            inside.wait(20)
            leave.wait(20)
        there.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    thread.start()
    with rows_over_threads():
        with rows_over_threads():
            inside.wait(20)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    leave.set()
    thread.join()
    assert there == [2] and torch.get_num_threads() == 3


def test_threads_made_later_have_the_number_that_was_set(threads):
    threads(4)
    first, second = threading.Event(), threading.Event()

    def stay() -> None:
        with rows_over_threads():
            first.set()
            assert second.wait(20)

    with rows_over_threads():
        inner = threading.Thread(target=stay)  # begins while this one is inside, ends after it
        inner.start()
        assert first.wait(20)
    second.set()
    inner.join()
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [4] and torch.get_num_threads() == 4


def test_few_threads_are_kept_however_many_blocks_there_are(threads):
    threads(5)
    before = threading.active_count()
    with rows_over_threads():
        for count in range(2, 12):
            assert list(each(lambda item: item, range(count), CPU)) == list(range(count))
    assert threading.active_count() <= before + 5


def test_autocast_moves_no_bit(threads):
    folder, frames = default_body_directory(), real(24)
    models = load_skel(folder, "male"), load_smpl(folder, "male")
    rows = frames.poses, frames.betas, frames.transl
    config = FitConfig(recipe="released", block_size=8)
    plain = fit_skel(*models, *rows, config)
    for count in (1, 2):
        threads(count)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(fit_skel(*models, *rows, config).poses, plain.poses)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_forked_between_two_results_may_leave(threads):
    threads(2)
    with rows_over_threads():
        for _ in each(lambda item: time.sleep(0.01), range(30), CPU):
            child = os.fork()
            if not child:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(20)
                break
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            return
    os._exit(0)  # the child, after it has left the loop and its threads that are not there


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own(threads):
    threads(2)
    with rows_over_threads():
        assert list(each(lambda item: -item, range(3), CPU)) == [0, -1, -2]
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)  # to wait for threads of the parent would never end
            try:
                assert list(each(lambda item: -item, range(3), CPU)) == [0, -1, -2]
                os._exit(0)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("inference", [False, True])
def test_bits_do_not_depend_on_the_number_of_threads(threads, inference):
    folder, frames = default_body_directory(), real(40)
    models = load_skel(folder, "male"), load_smpl(folder, "male")
    rows = frames.poses, frames.betas, frames.transl
    config = FitConfig(block_size=16, limited_above=0.005)
    found = []
    for count in (1, 2, 3, 8) if not inference else (1, 3):
        threads(count)
        with torch.inference_mode(inference):
            found.append(fit_skel(*models, *rows, config))
    for other in found[1:]:
        for name in ("poses", "trans", "vertex_error_mean", "vertex_error_max", "iterations"):
            mine, theirs = getattr(found[0], name), getattr(other, name)
            np.testing.assert_array_equal(mine.numpy(), theirs.numpy(), name)
        assert other.status == found[0].status
