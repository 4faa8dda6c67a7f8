"""The error tree; it imports nothing, so that every module may raise from it."""


class PipelineError(Exception):
    """An error that a user can mend: one line saying what, where and the remedy.

    `exit_code` is what the process ends with. A traceback is shown only with `--traceback`.
    """

    exit_code = 1
    agreed = True
    """Whether every rank ends with it; where one fails alone, its launcher has to end the others."""


class ConfigError(PipelineError):
    """A configuration that can't be used; the message may list several problems, one a line."""

    exit_code = 2


class UsageError(PipelineError):
    """A command line, an environment or a path that can't be used."""

    exit_code = 2


class DataError(PipelineError):
    """Images, folders or indexes that can't be used."""

    exit_code = 2


class CheckpointError(PipelineError):
    """A checkpoint that is missing, broken or made for something else."""

    exit_code = 2


class WorldError(PipelineError):
    """A set of processes that can't be formed or can't share the work."""

    exit_code = 2


class TrainingError(PipelineError):
    """Training that would fail again the same way, such as a loss that is no longer finite; launchers don't repeat it."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h


class TransientError(PipelineError):
    """Trouble from outside that may pass: a full or unreachable file system, a lock of a dead host, a node that is late.

    It is raised after waiting and trying again; launchers start the training again, from its last checkpoint.
    """

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h


class PeerLost(TransientError):
    """Training that can't go on because other ranks stopped responding; launchers start the processes again."""


class Regression(PipelineError):
    """A comparison of runs that came out as `--fail-if` says it must not."""

    exit_code = 1


class Stopped(PipelineError):
    """Training that stopped early because it was asked to; all ranks agreed, and what was done, if anything, is saved."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: "try again", which launchers read as "requeue me"
