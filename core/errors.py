"""Every error that Colever raises on purpose.

ColeverError
├── UsageError(ValueError)            a flag, file, field or value that the caller can mend (exit status 2)
│   └── TaskError                     a task file, split, rubric or program that cannot be used
├── InfrastructureError(RuntimeError) a machine, engine, judge or server that failed; never a score
│   └── StoreError                    a stored round, study or tracking database that cannot be read or written
├── LeverError(RuntimeError)          a pull that failed; recorded as failed, then raised
└── BudgetExhausted(RuntimeError)     a cap was reached before the work was done
"""


class ColeverError(Exception):
    """Base of all errors that Colever raises on purpose."""


class UsageError(ColeverError, ValueError):
    """Input that the caller can mend; the message names the flag, file or field and what is accepted."""


class TaskError(UsageError):
    """A task whose file, splits, rubric or program cannot be used."""


class InfrastructureError(ColeverError, RuntimeError):
    """The machinery failed, not the model: no score may be made of it."""


class StoreError(InfrastructureError):
    """A stored round, study or tracking database that cannot be read or written."""


class LeverError(ColeverError, RuntimeError):
    """A lever's pull failed."""


class BudgetExhausted(ColeverError, RuntimeError):
    """A cap of the budget was reached before the work was done; ``ledger`` is the budget whose cap it was."""

    def __init__(self, message: str, ledger: object = None) -> None:
        super().__init__(message)
        self.ledger = ledger
