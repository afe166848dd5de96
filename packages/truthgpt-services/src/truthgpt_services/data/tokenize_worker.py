"""The process that `EncodingPool` starts: reads texts from a pipe, and writes their tokens."""

from __future__ import annotations

import pickle
import signal
import sys
from typing import Any

from truthgpt_core.errors import TruthGPTError, in_one_line


def main() -> None:
    """Answer until the pipe is closed."""
    # Whoever started this process ends it, by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    # What a library prints must not come between the answers.
    sys.stdout = sys.stderr
    encoder: Any = None
    answer: tuple[str, Any]
    while True:
        try:
            request = pickle.load(requests)  # noqa: S301 - from the process that started this one
            if encoder is None:
                encoder, answer = request, ("ready", None)
            else:
                answer = ("encoded", encoder.encode(request))
        except EOFError:
            return
        except TruthGPTError as error:
            answer = ("refused", (error.message, error.hint))
        except Exception as error:  # noqa: BLE001 - the other process raises it
            answer = ("failed", in_one_line(error))
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    main()
