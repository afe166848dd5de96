"""A server under hostile requests, ended again and again, and held to the schemas of functions.

    python benchmarks/serve_soak.py --hostile 10000 --ends 100 --schemas 1000 --seed 1

* `--hostile`: requests that are malformed or mean harm: random JSON in every field, bytes in place
  of JSON or HTTP, slow and broken ones. None may get a 5xx.
* `--ends`: SIGTERM with eight streams open. None may be lost.
* `--schemas`: calls of functions at temperature 1, of the demo model, with random schemas and those
  of `bfcl-eval`, if that is installed. Arguments have to be what `jsonschema` allows, or the answer
  marked as cut off.

`nox -s soak` runs it. Prints what it found, and ends with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import decode

from truthgpt_services.testing import write_tiny_model

AT_ONCE = 16
TEMPLATE = "{% for each in messages %}{{ each['content'] }}\n{% endfor %}"
STREAMS = 8
TYPES = {
    "dict": "object",
    "float": "number",
    "double": "number",
    "long": "integer",
    "byte": "integer",
    "short": "integer",
    "tuple": "array",
    "ArrayList": "array",
    "Array": "array",
    "list": "array",
    "set": "array",
    "Hashtable": "object",
    "HashMap": "object",
    "Boolean": "boolean",
    "bool": "boolean",
    "Bigint": "integer",
    "char": "string",
    "String": "string",
}
"""Of programming languages, which the data have in place of those of JSON Schema."""


def main() -> None:
    """Run what is asked for."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--hostile", type=int, default=10_000)
    arguments.add_argument("--ends", type=int, default=100)
    arguments.add_argument("--schemas", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--model", default=decode.MODEL, help="for --schemas")
    given = arguments.parse_args()
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny"
        write_tiny_model(tiny, chat_template=TEMPLATE)
        if given.hostile:
            with serving(tiny) as (_, url):
                failed += hostile(url, given.hostile, random.Random(given.seed))
        if given.ends:
            failed += ends(tiny, given.ends)
        if given.schemas:
            with serving(given.model) as (_, url):
                failed += schemas(url, given.schemas, random.Random(given.seed))
    if failed:
        print("\n".join(failed[:50]), file=sys.stderr)
        raise SystemExit(1)


@contextmanager
def serving(model: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command; give its process and address."""
    truthgpt = Path(sys.executable).with_name("truthgpt")
    command = [truthgpt, "serve", f"m={model}", "--port", "0", "--max-waiting", "1000"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        said = ""
        for line in server.stderr:
            said += line
            if found := re.search(r"http://\S+", line):
                break
        else:
            raise SystemExit(f"The server did not start: {said}")
        threading.Thread(target=server.stderr.read, daemon=True).start()
        ready = f"{found[0].removesuffix('/v1')}/readyz"
        for _ in range(600):
            # It listens already, and is accepted once the server has started.
            with suppress(OSError):
                urllib.request.urlopen(ready, timeout=60)
                break
            time.sleep(0.1)
        try:
            yield server, found[0]
        finally:
            server.kill()


def post(url: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Send a body; return status and answer."""
    request = urllib.request.Request(f"{url}/{path}", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def hostile(url: str, count: int, chance: random.Random) -> list[str]:
    """Send requests that mean harm; return those that the server failed at."""
    port = int(url.split(":")[2].partition("/")[0])
    seeds = [chance.getrandbits(32) for _ in range(count)]
    statuses: Counter[int] = Counter()
    failed = []

    def one(seed: int) -> None:
        own = random.Random(seed)
        if own.random() < 0.1:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
                connection.settimeout(0.2)
                connection.sendall(own.choice(BROKEN) + own.randbytes(own.randrange(200)))
                connection.recv(1000)
            return
        path, body = own.choice(sorted(VALID)), b""
        if own.random() < 0.1:
            body = own.randbytes(own.randrange(300))
        else:
            fields = dict(VALID[path])
            for _ in range(own.randrange(1, 4)):
                fields[own.choice(NAMES)] = value(own, 3)
            if isinstance(fields.get("n"), int) and not isinstance(fields["n"], bool):
                fields["n"] = min(fields["n"], 2)
            body = json.dumps(fields).encode("utf-8", "surrogatepass")
        status, answer = post(url, path, body)
        statuses[status] += 1
        if status >= 500 or status == 429:
            failed.append(f"seed {seed}: {status} {answer!r:.300} for {body!r:.500}")

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(one, seeds))
    alive = urllib.request.urlopen(f"{url.removesuffix('/v1')}/livez", timeout=60).status
    if alive != 200:
        failed.append("the server is not alive")
    print(f"{count} hostile requests: {dict(sorted(statuses.items()))}, {len(failed)} failed")
    return failed


VALID: dict[str, dict[str, Any]] = {
    "chat/completions": {
        "model": "m",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 2,
    },
    "completions": {"model": "m", "prompt": "a", "max_tokens": 2},
    "responses": {"model": "m", "input": "a", "max_output_tokens": 2},
}
NAMES = (
    *("model", "messages", "prompt", "input", "max_tokens", "temperature", "top_p", "top_k"),
    *("min_p", "n", "seed", "stop", "stream", "stream_options", "logprobs", "top_logprobs"),
    *("response_format", "tools", "tool_choice", "logit_bias", "echo", "user", "instructions"),
    *("role", "content", "type", "text", "function", "name", "parameters", "format", "suffix"),
)
WORDS = ("m", "user", "system", "tool", "text", "json_schema", "function", "auto", "<tool_call>")
BROKEN = (
    b"",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
    b"X: " + b"a" * 40_000,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)


def value(chance: random.Random, depth: int) -> Any:
    """Return a random value of JSON, and some that are hard."""
    kinds = 9 if depth else 6
    kind = chance.randrange(kinds)
    if kind == 0:
        return chance.choice([None, True, False])
    if kind == 1:
        return chance.choice([0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**30])
    if kind == 2:
        return chance.choice([0.0, -0.0, 1e308, -1e-320, float("nan"), float("inf"), 0.5])
    if kind == 3:
        return chance.choice(WORDS)
    if kind in (4, 5):
        size = chance.randrange(30)
        return "".join(chr(chance.choice([chance.randrange(0x11000), 65])) for _ in range(size))
    if kind == 6:
        return [value(chance, depth - 1) for _ in range(chance.randrange(4))]
    return {chance.choice(NAMES): value(chance, depth - 1) for _ in range(chance.randrange(4))}


def ends(model: Path, count: int) -> list[str]:
    """End servers with streams open; return what was lost."""
    failed = []
    body = VALID["chat/completions"] | {
        "stream": True,
        "max_tokens": 200,
        "logit_bias": {"0": -100},
    }
    for number in range(count):
        with serving(model) as (server, url):
            begun = threading.Barrier(STREAMS + 1, timeout=120)
            ended: list[bytes] = []

            def follow(url: str = url, begun: Any = begun, ended: list[bytes] = ended) -> None:
                request = urllib.request.Request(
                    f"{url}/chat/completions",
                    json.dumps(body).encode(),
                    {"Content-Type": "application/json"},
                )
                with urllib.request.urlopen(request, timeout=120) as answer:
                    answer.readline()
                    begun.wait()
                    ended.append(answer.read())

            followers = [threading.Thread(target=follow) for _ in range(STREAMS)]
            for each in followers:
                each.start()
            begun.wait()
            server.send_signal(signal.SIGTERM)
            for each in followers:
                each.join(120)
            whole = [text for text in ended if b'"finish_reason":"length"' in text]
            code = server.wait(60)
            if len(whole) < STREAMS or code != 0:
                failed.append(f"end {number}: {len(whole)} of {STREAMS} streams, exit {code}")
    print(f"{count} ends with {STREAMS} streams open each: {len(failed)} lost some")
    return failed


def schemas(url: str, count: int, chance: random.Random) -> list[str]:
    """Have functions called; return arguments that their schema does not allow."""
    from jsonschema import Draft202012Validator

    known = list(bfcl_schemas())
    chance.shuffle(known)
    print(f"{len(known)} schemas of bfcl-eval")
    chosen = known[: count - count // 5]
    chosen += [schema_of(chance, 3) for _ in range(count - len(chosen))]
    found: Counter[str] = Counter()
    failed: list[str] = []

    def one(schema: dict[str, Any]) -> None:
        function = {"name": "f", "description": "Call me.", "parameters": schema}
        body = VALID["chat/completions"] | {
            "tools": [{"type": "function", "function": function}],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "temperature": 1,
            "max_tokens": 400,
            "messages": [{"role": "user", "content": "Call the function, please."}],
        }
        status, answer = post(url, "chat/completions", json.dumps(body).encode())
        read = json.loads(answer)
        if status == 400 and "cannot be used" in read["error"]["message"]:
            found["refused"] += 1
            return
        if status != 200:
            failed.append(f"{status} {read!r:.300} for {schema!r:.500}")
            return
        (choice,) = read["choices"]
        if choice["finish_reason"] == "length":
            found["cut off, and marked"] += 1
            return
        (call,) = choice["message"]["tool_calls"]
        errors = list(
            Draft202012Validator(schema).iter_errors(json.loads(call["function"]["arguments"]))
        )
        found["invalid" if errors else "valid"] += 1
        if errors:
            failed.append(f"{errors[0].message:.200} in {call!r:.300} for {schema!r:.500}")

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(one, chosen))
    print(f"{len(chosen)} calls at temperature 1: {dict(sorted(found.items()))}")
    if found["refused"] > len(chosen) / 20:
        failed.append(f"{found['refused']} schemas were refused, more than 5 %")
    return failed


def bfcl_schemas() -> Iterator[dict[str, Any]]:
    """Parameters of every function in the data of bfcl-eval, as JSON Schema."""
    found = find_spec("bfcl_eval")
    if found is None or found.submodule_search_locations is None:
        return
    seen = set()
    for file in sorted(Path(found.submodule_search_locations[0], "data").glob("BFCL_*.json")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict):  # one of the files is no list of questions
                continue
            for function in entry.get("function", ()):
                schema = as_json_schema(function["parameters"])
                text = json.dumps(schema, sort_keys=True)
                if text not in seen:
                    seen.add(text)
                    yield schema


def as_json_schema(given: Any) -> Any:
    """Return a schema whose types are those of JSON Schema."""
    if isinstance(given, list):
        return [as_json_schema(each) for each in given]
    if not isinstance(given, dict):
        return given
    found = {
        key: as_json_schema(each)
        for key, each in given.items()
        if key not in ("default", "optional")
    }
    kind = found.get("type")
    if isinstance(kind, str):
        if kind == "any":
            del found["type"]
        else:
            found["type"] = TYPES.get(kind, kind)
    return found


def schema_of(chance: random.Random, depth: int) -> dict[str, Any]:
    """Return a random schema of an object."""

    def part(depth: int) -> dict[str, Any]:
        kind = chance.randrange(7 if depth else 4)
        if kind == 0:
            low = chance.randrange(-50, 50)
            return {"type": "integer", "minimum": low, "maximum": low + chance.randrange(100)}
        if kind == 1:
            low = chance.randrange(4)
            return {"type": "string", "minLength": low, "maxLength": low + chance.randrange(20)}
        if kind == 2:
            return {"enum": [chance.choice(WORDS), chance.randrange(9), None]}
        if kind == 3:
            return {"type": chance.choice(["boolean", "null", "number"])}
        if kind == 4:
            return {"type": "array", "items": part(depth - 1), "maxItems": chance.randrange(1, 4)}
        if kind == 5:
            return {"anyOf": [part(depth - 1), part(depth - 1)]}
        return schema_of(chance, depth - 1)

    names = chance.sample(["a", "b c", "d-e", 'f"g', "\u00fc", "type"], chance.randrange(1, 4))
    return {
        "type": "object",
        "properties": {name: part(depth - 1) for name in names},
        "required": [name for name in names if chance.random() < 0.6],
        "additionalProperties": False,
    }


if __name__ == "__main__":
    main()
