"""No search for garbage while tests are collected: it takes seconds, and hardly any of what is made then goes."""

import gc


def pytest_configure() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
