"""Threads of torch: each thread has those that it asks for, and nobody else."""

from __future__ import annotations

import threading

import torch

from napari_kdunet.core.devices import using_threads


def in_a_new_thread(work) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_threads_within_each_other():
    before = torch.get_num_threads()
    with using_threads(3):
        with using_threads(2):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before


def test_a_new_thread_has_what_there_was_before_others_overlapped():
    """As slices do that are computed side by side: one begins while another has its own number, and ends last."""
    before, seen = torch.get_num_threads(), list[int]()
    begun, ended = threading.Event(), threading.Event()

    def first() -> None:
        with using_threads(before + 3):
            second.start()
            begun.wait()
        seen.append(torch.get_num_threads())
        ended.set()

    def other() -> None:
        with using_threads(before + 1):
            begun.set()
            ended.wait()
            seen.append(torch.get_num_threads())

    second = threading.Thread(target=other)
    in_a_new_thread(first)
    second.join()
    in_a_new_thread(lambda: seen.append(torch.get_num_threads()))
    assert seen == [before, before + 1, before]
