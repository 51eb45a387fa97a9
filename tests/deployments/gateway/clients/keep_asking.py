"""Asks by the `openai` package without a pause and without another try, whole and streamed, until stdin ends.

Prints `asking` once a request has ended, and at its end a line of JSON: how many were answered, and the failures.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
from typing import Any

from asking import BASE, KEY, MODEL

openai: Any = importlib.import_module("openai")


def main() -> None:
    client: Any = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0, timeout=120)
    answered: list[int] = []
    failures: list[str] = []
    begun, stopped = threading.Event(), threading.Event()

    def ask(number: int) -> None:
        fields = {"model": MODEL, "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 6, "seed": 1}
        while not stopped.is_set():
            try:
                if number % 2:
                    chunks = list(client.chat.completions.create(**fields, stream=True))
                    reason = chunks[-1].choices[0].finish_reason
                else:
                    reason = client.chat.completions.create(**fields).choices[0].finish_reason
                assert reason in ("length", "stop"), reason
                answered.append(number)
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}"[:500])
            begun.set()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    print("asking", flush=True)
    sys.stdin.read()
    stopped.set()
    for thread in threads:
        thread.join()
    print(json.dumps([len(answered), failures]), flush=True)


if __name__ == "__main__":
    main()
