"""A client of OpenAI's protocol that times what it gets, in a process of its own.

It reads plans on standard input, a line of JSON each, and answers each with what became of its
requests. Nothing is imported but the standard library, so it takes little from the server.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from typing import Any
from urllib.parse import urlsplit


async def ask(url: str, request: dict[str, Any], began: float) -> dict[str, Any]:
    """Send one request, `at` seconds from the beginning; return when its pieces came.

    Args:
        url: of the server, with the version of the protocol.
        request: `at` and `body`, which is streamed unless it says otherwise.
        began: when the plan began.
    """
    await asyncio.sleep(max(0.0, began + request.get("at", 0.0) - time.perf_counter()))
    address = urlsplit(url)
    body = json.dumps({"stream": True, **request["body"]}).encode()
    path = f"{address.path}/{request.get('path', 'chat/completions')}"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    found: dict[str, Any] = {"sent": time.perf_counter() - began, "times": [], "status": 0}
    writer = None
    try:
        assert address.hostname is not None
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(head.encode() + body)
        found["status"] = int((await reader.readline()).split()[1])
        async for line in reader:
            if not line.startswith(b"data: {"):
                if line.startswith(b"{"):
                    found["body"] = json.loads(line)
                continue
            event = json.loads(line[6:])
            if "error" in event:
                found["error"] = event["error"]
            if event.get("usage"):
                found["usage"] = event["usage"]
            if any(_text(choice) for choice in event.get("choices", ())):
                found["times"].append(time.perf_counter() - began)
    except (OSError, ValueError, IndexError) as error:
        found["error"] = str(error)
    finally:
        if writer is not None:
            writer.close()
    found["ended"] = time.perf_counter() - began
    return found


def _text(choice: dict[str, Any]) -> str | None:
    text: str | None = choice.get("text") or choice.get("delta", {}).get("content")
    return text


async def follow(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Send the requests of a plan, each at its time."""
    began = time.perf_counter()
    return await asyncio.gather(*(ask(plan["url"], each, began) for each in plan["requests"]))


def main() -> None:
    """Follow plans until there are no more."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    for line in sys.stdin:
        print(json.dumps(asyncio.run(follow(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
