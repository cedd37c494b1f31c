"""Cores and memory of the machine."""

import os

import psutil
import pytest
import torch

from dsa_sandbox import machine


def test_there_are_no_more_cores_than_this_process_may_use() -> None:
    assert 1 <= machine.physical_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("physical", "expected"), [(6, 6), (None, 1)])
def test_a_system_without_affinity_counts_all_physical_cores(
    physical: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None if logical else physical)
    assert machine.physical_cores() == expected


def test_free_memory_is_some_of_what_the_machine_has() -> None:
    assert 0 < machine.free_bytes(torch.device("cpu")) < psutil.virtual_memory().total
