"""The command restarts itself at most once, and only where there is something to gain."""

import platform

import pytest

from xec_jax.train.huge_pages import OFF, TUNABLE, environment_with_huge_pages

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")


@on_glibc
def test_environment_of_the_second_start():
    first = {"HOME": "/home/user"}
    second = environment_with_huge_pages(first)
    assert second == {"HOME": "/home/user", "GLIBC_TUNABLES": TUNABLE}
    assert environment_with_huge_pages(second) is None, "no third start"


@on_glibc
def test_other_tunables_stay():
    second = environment_with_huge_pages({"GLIBC_TUNABLES": "glibc.malloc.check=1"})
    assert second["GLIBC_TUNABLES"] == f"glibc.malloc.check=1:{TUNABLE}"


def test_the_user_decides():
    assert environment_with_huge_pages({OFF: "0"}) is None
    assert environment_with_huge_pages({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"}) is None


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert environment_with_huge_pages({}) is None
