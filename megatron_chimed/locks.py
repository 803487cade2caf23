"""A lock on a folder that ends with the process that holds it, however that ends."""

import fcntl
import os
import socket
import sys
from pathlib import Path

from megatron_chimed.errors import InputError


def lock_folder(folder: str | Path, what: str) -> int:
    """Keep other jobs out of a folder until this process ends or closes the returned handle; makes the folder.

    what: the flag or the key that names the folder, for messages. Raises InputError when another process holds it
    (saying which one), and OSError when the folder cannot be made. Where the file system has no locks a line warns.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(handle, 1000, 0).decode(errors="replace").strip() or "another process"
        os.close(handle)
        raise InputError(
            f"{folder}: another job is running there ({owner}); wait for it, or name another {what}"
        ) from None
    except OSError as error:
        print(f"warning: {folder}: no lock ({error.strerror}); see that no other job runs there", file=sys.stderr)
        return handle
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle
