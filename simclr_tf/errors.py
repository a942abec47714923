"""What can go wrong, and the exit code each thing has.

A `SimclrError` is something a user can cause and mend: `cli.py` prints its message without a traceback and exits
with its code. Anything else is a bug of ours: exit 1.
"""


class SimclrError(Exception):
    """Base of every error a user can cause. `exit_code` is what the process ends with."""

    exit_code = 1


class ConfigError(SimclrError):
    """A flag, or two flags together, break a rule. The message states the rule, the value and the fix."""

    exit_code = 2


class DataError(SimclrError):
    """A data set, split, image or path is missing or unusable."""

    exit_code = 2


class DeviceError(SimclrError):
    """A device that was asked for is not there, or has not enough memory."""

    exit_code = 2


class CheckpointError(SimclrError):
    """A checkpoint is missing, damaged, or does not fit the model or the settings."""

    exit_code = 3


class NonFiniteError(SimclrError):
    """A loss or gradient became infinite or not a number."""

    exit_code = 4


class StorageError(SimclrError):
    """Storage is full or cannot be written."""

    exit_code = 5


class WorkerError(SimclrError):
    """Another worker of the run is gone, or never came. Starting all of them again goes on from the last checkpoint."""

    exit_code = 6


class Interrupted(SimclrError):
    """SIGINT or SIGTERM arrived; the run has saved a checkpoint."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signal_number
