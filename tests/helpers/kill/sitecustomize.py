"""Imported by every Python that finds it: counts what changes the disk, and dies before the call of that number.

`KILL_AT` is the number; the count goes into the file `KILL_COUNT`. A file that is about to be synced is cut in half
first, as a power cut would leave it.
"""

import os
import signal
import stat

CALLS = ("replace", "rename", "mkdir", "rmdir", "unlink", "fsync", "truncate")
count, last = 0, int(os.environ.get("KILL_AT", 0))
writer = os.getpid()  # threads and processes that it starts do not count


def counted(name):
    call = getattr(os, name)

    def act(*arguments, **options):
        global count
        if os.getpid() == writer:
            count += 1
            if count == last:
                if name == "fsync" and stat.S_ISREG(os.fstat(arguments[0]).st_mode):
                    path = f"/proc/self/fd/{arguments[0]}"
                    if os.path.exists(path):
                        os.truncate(path, os.fstat(arguments[0]).st_size // 2)
                os.kill(writer, signal.SIGKILL)
            with open(os.environ["KILL_COUNT"], "w") as file:
                file.write(str(count))
        return call(*arguments, **options)

    return act


for name in CALLS:
    setattr(os, name, counted(name))
