"""Ctrl-C and SIGTERM: a command ends within two seconds wherever it is, and leaves nothing half-written.

Both raise `Interrupted` in the main thread, which unwinds as ever. Two things can keep that from happening in time: the
main thread is inside of a long native call, or other threads are, which the interpreter would wait for at its end.
`run_program` waits for neither.
"""

import contextlib
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from ..atomic import remove_partial_files

GRACE = 1.5  # seconds to unwind in


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; `status` is what a shell expects of a program that ended by it."""

    def __init__(self, number: int):
        super().__init__("interrupted")
        self.status = 128 + number


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that temporary files go. Signals that are ignored stay so (`nohup`)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: object) -> NoReturn:
        raise Interrupted(number)

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    taken = [number for number, handler in usual.items() if signal.getsignal(number) == handler]
    before = {number: signal.signal(number, interrupt) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_program(main: Callable[[], int]) -> int:
    """The status of `main`; a program that was interrupted ends here, whatever its threads are doing."""
    if os.name == "nt":
        return main()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # The one thing that happens at once, inside of a native call too.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    status = main()
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        _leave(status)
    return status


def _watch(reader: int) -> None:
    number = 0
    while number not in (signal.SIGINT, signal.SIGTERM):
        number = os.read(reader, 1)[0]
    select.select([reader], [], [], GRACE)  # or until the next signal: somebody is impatient
    if signal.getsignal(number) != signal.SIG_IGN:
        _leave(128 + number)


def _leave(status: int) -> NoReturn:
    for process in multiprocessing.active_children():
        process.terminate()
    remove_partial_files()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
