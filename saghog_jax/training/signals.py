"""SIGTERM and SIGINT: the first signal saves and stops a run, the second ends it at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAVING = b"stop signal received: saving after this step; a second signal stops at once\n"


class StopRequest:
    """`signal` is the number of the received signal, 0 for none."""

    signal = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Handles the signals inside the context; ignores them if not in the main thread.

    A separate thread reads the signals: Python runs handlers only between two instructions of the
    main thread, which may be busy with a compilation for minutes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    listener = threading.Thread(target=_listen, args=(read, request), daemon=True)
    listener.start()
    old_handle = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    # Empty handlers: without a handler the signal would end the process.
    old_handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_handle)
        os.close(write)
        listener.join()
        os.close(read)


def _listen(read: int, request: StopRequest) -> None:
    while byte := os.read(read, 1):
        if byte[0] not in SIGNALS:
            continue
        if request.signal:
            os._exit(128 + byte[0])
        request.signal = byte[0]
        os.write(2, _SAVING)
