"""Tells what a file system lacks (network shares, FUSE) from what has failed."""

from __future__ import annotations

import errno

# SMB, exFAT, FUSE and mounts of object stores answer with any of these to a call that they do not have.
# Errors of a disk, its space or a connection (EIO, ENOSPC, EDQUOT, ESTALE, …) are not among them.
_ERRNOS = frozenset(
    {
        errno.EACCES,
        errno.EBADF,
        errno.EINVAL,
        errno.EISDIR,
        errno.ENODEV,
        errno.ENOLCK,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.ENOTTY,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EROFS,
    }
)


def is_unsupported(error: OSError) -> bool:
    """Returns whether `error` means that the file system lacks the operation, not that a disk has failed.

    Only for operations after whose failure nothing is lost: an fsync, a lock, permissions, a mapping.
    """
    return error.errno in _ERRNOS
