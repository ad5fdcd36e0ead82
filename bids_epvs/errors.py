"""Errors a user can act on: each says what happened, where, and what to do, and carries its exit code.

The codes follow the BIDS execution-spec draft. Only ``cli`` turns them into a process exit status.
"""

from __future__ import annotations


class EpvsError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    what : str
        What was expected and what was found.
    where : object, optional
        File or option concerned.
    remedy : str, optional
        What the user can do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, None if where is None else str(where), remedy
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """One line: place, fact, next step."""
        place = f"{self.where}: " if self.where else ""
        step = f" {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{step}"

    def __reduce__(self):  # keyword-only arguments do not survive the default pickling between processes
        return (_rebuild, (type(self), self.what, self.where, self.remedy))


def _rebuild(cls: type[EpvsError], what: str, where: str | None, remedy: str) -> EpvsError:
    return cls(what, where=where, remedy=remedy)


class InvalidDatasetError(EpvsError):
    """The input directory is not a valid BIDS dataset."""

    exit_code = 16


class AnalysisLevelError(EpvsError):
    """The analysis level is neither ``participant`` nor ``group``."""

    exit_code = 17


class NoFileSelectedError(EpvsError):
    """The filters select no file."""

    exit_code = 18


class UsageError(EpvsError):
    """An option is unknown, malformed or contradicts another."""

    exit_code = 64


class DataError(EpvsError):
    """A file is unreadable or holds impossible data."""

    exit_code = 65


class NothingToDoError(EpvsError):
    """A valid dataset, but nothing this app can use."""

    exit_code = 66


class OutputError(EpvsError):
    """The output cannot be created."""

    exit_code = 73


class InputOutputError(EpvsError):
    """Reading or writing failed on the way."""

    exit_code = 74


class TemporaryError(EpvsError):
    """The machine cannot do this now (memory, disk); a later or smaller run may."""

    exit_code = 75
