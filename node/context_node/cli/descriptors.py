"""How many files and connections this process may have open.

Knows the operating system's limit of open files. Does not know who opens them. Invariant: what connections may take leaves enough for
the databases, or a crowd of clients could make a write to disk fail.
"""

import resource

RESERVE = 160
"""For the log, the sockets that listen, pipes, and connections that are being refused."""
RESERVE_PER_SHARD = 3
"""A state database, its write-ahead file and that one's index. With 32 shards the whole reserve is 256."""
CONNECTIONS_MIN = 16


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one, which needs no privilege; the limit that holds then.

    The soft one is often 1024 for the sake of programs that use select(2); nothing here does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft  # some systems refuse a limit above the kernel's own (macOS: "unlimited")
    return hard


def connections_within(files_max: int, shards: int) -> int:
    """Connections that `files_max` open files leave room for, at least CONNECTIONS_MIN."""
    if files_max == resource.RLIM_INFINITY:
        return 2**31
    return max(CONNECTIONS_MIN, files_max - RESERVE - RESERVE_PER_SHARD * shards)
