"""What the command lines of all programs have in common: spelling of options, usage errors, exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from bids_epvs.errors import EpvsError, InputOutputError, UsageError

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""


class Parser(argparse.ArgumentParser):
    """Takes each long option with ``-`` and with ``_``; usage errors are UsageError.

    Examples
    --------
    >>> parser = Parser()
    >>> _ = parser.add_argument("--held-out", nargs="+")
    >>> parser.parse_args(["--held_out", "a_b"]).held_out
    ['a_b']
    """

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        """As in `argparse`."""
        given: Sequence[str] = sys.argv[1:] if args is None else args
        return super().parse_known_args([dashed(word) for word in given], namespace)

    def error(self, message: str) -> NoReturn:
        """Leave with code 64 (see `status`)."""
        raise UsageError(message, remedy=f"See {self.prog} --help.")


def dashed(word: str) -> str:
    """A word of a command line, the name of a long option spelled with ``-``.

    Examples
    --------
    >>> dashed("--work_dir=/a_b"), dashed("a_b")
    ('--work-dir=/a_b', 'a_b')
    """
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def status(program: str, work: Callable[[], int], *, interrupted: str = "run again to resume") -> int:
    """The exit code of a program: every error becomes one line and its code.

    Parameters
    ----------
    program : str
    work : callable
        Does it; returns its exit code.
    interrupted : str
        What is said after Ctrl-C.
    """
    try:
        return work()
    except EpvsError as error:
        print(f"{program}: {error.message}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return InputOutputError.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted; {interrupted}", file=sys.stderr)
        return INTERRUPTED
