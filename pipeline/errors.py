"""The error tree; it imports nothing, so that every module may raise from it.

Not here: how errors are printed (`pipeline.__main__`).
"""


class PipelineError(Exception):
    """An error that a user can mend: one line saying what, where and the remedy.

    `exit_code` is what the process ends with. A traceback is shown only with `--traceback`.
    """

    exit_code = 1


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
    """Training that can't go on, such as a loss that is no longer finite."""

    exit_code = 1


class PeerLost(PipelineError):
    """Training that can't go on because other ranks answer no more; launchers start the processes again."""

    exit_code = 1


class Stopped(PipelineError):
    """Training that stopped early because it was asked to; all ranks agreed and the state is saved."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: "try again", which launchers read as "requeue me"
