"""What a server adds to the engine, and how servers compare, over HTTP on the same machine.

SmolLM2-135M-Instruct with 8-bit weights. Each server is a process of its own, and so is the client,
which all of them share; they take turns. Parts, for `--only`:

* `throughput`: 1, 4 and 16 streams of mixed length at once, in useful tokens per second.
* `overhead`: one stream through HTTP, against the same service read in its own process.
* `stalls`: time between two tokens of 8 streams while a prompt of 2,000 tokens arrives.
* `shared`: time to the first token where a system prompt of 1,000 tokens was read before.
* `cache`: an answer that the response cache has.
* `overload`: 1,000 connections at once, again and again for a minute: what they get.
* `gateway`: what Ray Serve and the gateway to it add to a request; with `--ray`.
* `guidellm`: what GuideLLM counts beside this client, of requests alike; with `--guidellm`.

Others take part as in `decode.py`; `--transformers` starts `transformers serve`, too.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlsplit

import decode
from batch import read_requests
from rivals import LLAMA, OPENVINO

HERE = Path(__file__).parent
OURS = "truthgpt serve, native, int8"
BARE = "native, int8 (the default)"
ON_RAY = "truthgpt serve --on ray"
GUIDELLM = "GuideLLM"
BATCHING = "--continuous-batching"
TRANSFORMERS = ("transformers serve, BF16", f"transformers serve {BATCHING}, BF16")
STREAMS = (1, 4, 16)
LONG, SYSTEM, FOLLOWED = 2000, 1000, 8
CHECKED, WAVES, ANSWER = (1, 4), 4, 64
CONNECTIONS, OVERLOAD_SECONDS, DEADLINE = 1000, 60, 60.0
NEVER_END = {"0": -100, "2": -100}


def main() -> None:
    """Measure and print."""
    arguments = decode.contender_arguments(__doc__, only="parts")
    arguments.add_argument(
        "--model",
        type=Path,
        default=HERE.parent / "build" / "demo",
        help="as `make demo` leaves it",
    )
    arguments.add_argument("--transformers", action="store_true", help="start transformers serve")
    arguments.add_argument("--ray", metavar="PYTHON", help="that has truthgpt-plugin-ray")
    arguments.add_argument("--guidellm", metavar="PYTHON", help="that has guidellm 0.8")
    given = arguments.parse_args()
    if given.worker:
        decode.serve(given.worker, 1, decode.FULL_CONTEXT, Bare, take_turn)
        return
    parts = {
        "throughput": throughput,
        "overhead": overhead,
        "stalls": stalls,
        "shared": shared,
        "cache": cached,
        "overload": overload,
        **({"gateway": gateway} if given.ray else {}),
        **({"guidellm": guidellm} if given.guidellm else {}),
    }
    if not (given.model / "truthgpt.json").exists():
        raise SystemExit(f"{given.model} is not an optimized model: make demo makes one.")
    with tempfile.TemporaryDirectory() as folder:
        pythons = decode.rivals_there(given)
        if given.ray:
            pythons[ON_RAY] = given.ray
        if given.guidellm:
            pythons[GUIDELLM] = given.guidellm
        bench = Bench(Path(folder), given.model, pythons, transformers=given.transformers)
        try:
            for name, part in parts.items():
                if not given.only or name in given.only:
                    part(bench, given.rounds)
        finally:
            bench.close()


class Bench:
    """Servers, and the client that asks them."""

    def __init__(
        self, folder: Path, model: Path, pythons: dict[str, str], *, transformers: bool
    ) -> None:
        self.folder, self.model = folder, model
        self.ids = decode.text_ids(folder)
        self.requests = read_requests(self.ids)
        from truthgpt_services.services.model_service import ModelService

        self.tokenizer = ModelService().load_tokenizer(decode.MODEL)
        self.servers: dict[str, tuple[str, str, subprocess.Popen[bytes]]] = {}
        self.rivals = [name for name in (f"{LLAMA}, Q8_0", f"{OPENVINO}, Q8_0") if name in pythons]
        self.pythons = pythons
        self.gguf = decode.write_gguf(folder, ["Q8_0"])["Q8_0"]
        self.transformers = transformers
        self.client = subprocess.Popen(
            [sys.executable, HERE / "http_client.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        decode.describe({name: pythons[name] for name in self.rivals})

    def start(self, name: str, *options: str) -> str:
        """Start a server that has not been started; return its name."""
        if name in self.servers:
            return name
        port = str(free_port())
        python = self.pythons.get(name, sys.executable)
        truthgpt = Path(python).with_name("truthgpt")
        if name.startswith("truthgpt"):
            command = [truthgpt, "serve", f"m={self.model}", "--port", port, *options]
            command += ["--max-batch-size", "16"]
        elif name.startswith(OPENVINO):
            command = [python, HERE / "openvino_server.py", self.gguf, port, "16"]
        elif name.startswith(LLAMA):
            command = [python, "-m", "llama_cpp.server", "--model", self.gguf, "--port", port]
            command += ["--n_ctx", "8192", "--model_alias", "m", "--interrupt_requests", "false"]
        else:
            source = Path(self.folder / "float32")
            if not source.exists():
                save_plain(source)
            command = [Path(sys.executable).with_name("transformers"), "serve", str(source)]
            command += ["--port", port, "--dtype", "bfloat16"]
            command += [BATCHING] if BATCHING in name else []
        log = (self.folder / f"{port}.log").open("wb")
        process = subprocess.Popen(command, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}/v1"
        model = str(self.folder / "float32") if name.startswith("transformers") else "m"
        self.servers[name] = (url, model, process)
        for _ in range(600):
            if process.poll() is not None:
                raise SystemExit(f"{name} ended: {Path(log.name).read_text()[-2000:]}")
            with suppress(OSError):
                with suppress(urllib.error.HTTPError):
                    urllib.request.urlopen(f"{url}/models", timeout=5)
                # A server that is not ready says 503.
                if self.ask(name, [self.chat("Hello", 2)])[0]["status"] == 200:
                    return name
            time.sleep(0.5)
        raise SystemExit(f"{name} did not start")

    def chat(self, text: str, count: int, system: str | None = None) -> dict[str, Any]:
        """Return a request for exactly so many tokens."""
        messages = [{"role": "system", "content": system}] if system is not None else []
        return {
            "body": {
                "messages": [*messages, {"role": "user", "content": text}],
                "max_tokens": count,
                "temperature": 0,
                "logit_bias": NEVER_END,
            }
        }

    def text(self, begin: int, count: int) -> str:
        """Return a part of the text, of so many tokens."""
        text: str = self.tokenizer.decode(self.ids[begin : begin + count])
        return text

    def ask(self, name: str, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send requests to a server; return what became of each."""
        url, model, _ = self.servers[name]
        for each in requests:
            each["body"]["model"] = model
        if name.startswith("transformers"):  # which refuses what it does not know
            for each in requests:
                each["body"].pop("logit_bias", None)
        assert self.client.stdin is not None
        assert self.client.stdout is not None
        self.client.stdin.write(json.dumps({"url": url, "requests": requests}) + "\n")
        self.client.stdin.flush()
        found: list[dict[str, Any]] = json.loads(self.client.stdout.readline())
        return found

    def resident(self, name: str) -> float:
        """MB that a server has in memory."""
        _, _, process = self.servers[name]
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        return float(status.partition("VmRSS:")[2].split()[0]) / 1024

    def close(self) -> None:
        """End everything."""
        self.client.kill()
        for _, _, process in self.servers.values():
            process.kill()


def throughput(bench: Bench, rounds: int) -> None:
    """Streams at once: tokens that clients got, by the time that all of them took."""
    names = [OURS, *bench.rivals, *(TRANSFORMERS if bench.transformers else [])]
    for name in names:
        bench.start(name)
    table: dict[str, list[str]] = {name: [] for name in names}
    asked = [0]
    for count in STREAMS:

        def measure(name: str, count: int = count) -> dict[str, float]:
            asked[0] += 1
            # Another beginning each time: what was read of a turn before is of no use.
            work = [
                bench.chat(f"{asked[0]}. {bench.text(each['begin'], each['prompt'])}", each["new"])
                for each in bench.requests[:count]
            ]
            found = bench.ask(name, work)
            assert all(each["status"] == 200 for each in found), found
            return {"rate": sum(len(each["times"]) for each in found) / took(found)}

        turns = decode.take_turns(names, measure, rounds)
        best = max((n for n in names if n != OURS), key=lambda n: mid(turns[n]), default=OURS)
        for name in names:
            ratios = [
                ours["rate"] / theirs["rate"]
                for ours, theirs in zip(turns[OURS], turns[name], strict=True)
            ]
            against = f" ({spread(ratios)})" if name == best else ""
            table[name].append(f"{mid(turns[name]):.0f}{against}")
    print("\nUseful tokens/s; in brackets, ours against the best of the others\n")
    print(f"| | {' | '.join(f'{count} at once' for count in STREAMS)} |")
    print(f"|---{'|---:' * len(STREAMS)}|")
    for name, cells in table.items():
        print(f"| {name} | {' | '.join(cells)} |")


def overhead(bench: Bench, rounds: int) -> None:
    """One stream through HTTP against the bare loop."""
    bench.start(OURS)
    worker = decode.start_workers([BARE], {}, bench.folder, __file__)[BARE]
    text = bench.text(0, 64)

    def measure(name: str) -> dict[str, float]:
        if name == BARE:
            return worker.ask("turn", [text])
        times = bench.ask(OURS, [bench.chat(text, 200)])[0]["times"]
        return {"rate": (len(times) - 1) / (times[-1] - times[0])}

    turns = decode.take_turns([BARE, OURS], measure, rounds)
    ratios = [
        http["rate"] / bare["rate"] for http, bare in zip(turns[OURS], turns[BARE], strict=True)
    ]
    print("\nOne stream of 200 tokens, tokens/s after the first")
    print(f"  through HTTP {mid(turns[OURS]):.1f}, in the process {mid(turns[BARE]):.1f}")
    print(f"  ratio {spread(ratios)}")
    worker.close()


class Bare:
    """The service without a server."""

    def __init__(self, name: str) -> None:
        from truthgpt_services import InferenceService, ModelService

        self.service = InferenceService()
        self.service.configure(
            decode.Torch(name).engine, ModelService().load_tokenizer(decode.MODEL)
        )


def take_turn(contender: Bare, what: str, given: list[str]) -> dict[str, float]:
    """Read one stream."""
    messages = [{"role": "user", "content": given[0]}]
    bias = {int(token): value for token, value in NEVER_END.items()}
    stream = contender.service.stream(messages, {"max_new_tokens": 200, "logit_bias": bias})
    times = [time.perf_counter() for _ in stream]
    return {"rate": (len(times) - 1) / (times[-1] - times[0])}


def stalls(bench: Bench, rounds: int) -> None:
    """Eight streams, and a long prompt that arrives among them."""
    bench.start(OURS)
    found = []
    for turn in range(rounds):
        # Another beginning each time: it is to be read.
        long = {**bench.chat(f"{turn}. {bench.text(0, LONG)}", 2), "at": 1.0}
        streams = [bench.chat(bench.text(64 * n + turn, 64), 200) for n in range(FOLLOWED)]
        *followed, arrived = bench.ask(OURS, [*streams, long])
        begin, end = arrived["sent"], arrived["times"][0]
        alone, meanwhile = [], []
        for each in followed:
            for before, after in zip(each["times"], each["times"][1:], strict=False):
                (meanwhile if before > begin and after < end else alone).append(after - before)
        found.append((median(alone), quantiles(meanwhile, n=100)[-1]))
    print("\nEight streams while a prompt of 2,000 tokens arrives, time between two tokens")
    print(f"  median alone {spread([1e3 * each for each, _ in found], 1)} ms")
    print(f"  99th percentile meanwhile, to it: {spread([p99 / mid for mid, p99 in found])}")


def shared(bench: Bench, rounds: int) -> None:
    """A long system prompt, which later requests have in common."""
    bench.start(OURS)
    found = []
    for turn in range(rounds):
        system = f"{turn}. {bench.text(64 * turn, SYSTEM)}"
        first, later = (
            bench.ask(OURS, [bench.chat(question, 4, system)])[0]
            for question in ("What is this about?", "Who wrote it?")
        )
        found.append((later["times"][0] - later["sent"]) / (first["times"][0] - first["sent"]))
    print("\nFirst token behind a system prompt of 1,000 tokens, second request to the first")
    print(f"  ratio {spread(found, 3)}")


def cached(bench: Bench, rounds: int) -> None:
    """An answer that was given before, over a connection that is kept, as clients keep theirs."""
    name = bench.start(f"{OURS}, response cache", "--response-cache", str(bench.folder / "cache"))
    url, model, _ = bench.servers[name]
    body = json.dumps({**bench.chat("Hello", 50)["body"], "model": model})
    address = urlsplit(url)
    connection = HTTPConnection(address.netloc)
    times, texts = [], set()
    for _ in range(200 * rounds):
        began = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", f"{address.path}/chat/completions", body, headers)
        answer = connection.getresponse()
        texts.add(json.loads(answer.read())["choices"][0]["message"]["content"])
        times.append(1e3 * (time.perf_counter() - began))
    assert len(texts) == 1
    print("\nAn answer of the response cache, over a connection that is open")
    print(f"  {spread(times[1:])} ms; 99th percentile {quantiles(times[1:], n=100)[-1]:.2f}")


def overload(bench: Bench, rounds: int) -> None:
    """More connections than any machine answers."""
    name = bench.start(f"{OURS}, overloaded", "--request-timeout", str(DEADLINE))
    statuses: dict[int, int] = {}
    times, memory = [], [bench.resident(name)]
    end = time.monotonic() + OVERLOAD_SECONDS
    while time.monotonic() < end:
        body = [bench.chat(bench.text(n, 32), 8) for n in range(CONNECTIONS)]
        for each in bench.ask(name, body):
            statuses[each["status"]] = statuses.get(each["status"], 0) + 1
            if each["status"] == 200:
                times.append(each["ended"] - each["sent"])
        memory.append(bench.resident(name))
    print(f"\n{CONNECTIONS} connections at once for {OVERLOAD_SECONDS} s")
    print(f"  statuses: {statuses}")
    print(f"  of those answered, 99th percentile {quantiles(times, n=100)[-1]:.1f} s")
    print(f"  memory, MB: {', '.join(f'{each:.0f}' for each in memory)}")


def gateway(bench: Bench, rounds: int) -> None:
    """A request for one token, through Ray Serve and without."""
    names = [bench.start(OURS), bench.start(ON_RAY, "--on", "ray:cpus=0.5", "--replicas", "2")]

    def measure(name: str) -> dict[str, float]:
        body = [bench.chat("Hello", 1)]
        body[0]["body"]["stream"] = False
        (found,) = bench.ask(name, body)
        return {"ms": 1e3 * (found["ended"] - found["sent"])}

    turns = decode.take_turns(names, measure, 20 * rounds)
    print("\nA request for one token, connection included, ms")
    for name in names:
        print(f"  {name}: {spread([each['ms'] for each in turns[name]], 1)}")
    more = [ray["ms"] - own["ms"] for own, ray in zip(turns[OURS], turns[ON_RAY], strict=True)]
    print(f"  more through Ray: {spread(more, 1)}")


def guidellm(bench: Bench, rounds: int) -> None:
    """The same load from two clients: what each says of it."""
    bench.start(OURS)
    clients = {"this client": ask_in_waves, GUIDELLM: ask_with_guidellm}
    asked = [0]
    print("\nThe same server and load, by the client that counts")
    for count in CHECKED:

        def measure(name: str, count: int = count) -> dict[str, float]:
            asked[0] += 1
            # Another beginning each time: what was read for the other client is of no use.
            texts = [f"{asked[0]}. {bench.text(64 * n, 64)}" for n in range(WAVES * count)]
            return clients[name](bench, texts, count)

        turns = decode.take_turns(list(clients), measure, rounds)
        for name, found in turns.items():
            rate, first = ([each[what] for each in found] for what in ("rate", "first"))
            print(f"  {count} at once, {name}: {spread(rate)} tokens/s", end="")
            print(f", first token after {spread(first, 1)} ms")


def ask_in_waves(bench: Bench, texts: list[str], count: int) -> dict[str, float]:
    """Ask so many at once, and the next when all have ended; answers are of the same length."""
    answered = []
    seconds = 0.0
    for begin in range(0, len(texts), count):
        wave = bench.ask(OURS, [bench.chat(text, ANSWER) for text in texts[begin : begin + count]])
        seconds += took(wave)
        answered += wave
    return {
        "rate": sum(len(each["times"]) for each in answered) / seconds,
        "first": 1e3 * median(each["times"][0] - each["sent"] for each in answered),
    }


def ask_with_guidellm(bench: Bench, texts: list[str], count: int) -> dict[str, float]:
    """Have GuideLLM ask the same, in a process of its own that needs no hub."""
    url, model, _ = bench.servers[OURS]
    data, report = bench.folder / "guidellm.jsonl", bench.folder / "guidellm.json"
    data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    backend = {
        "kind": "openai_http",
        "target": url.removesuffix("/v1"),
        "model": model,
        "max_tokens": ANSWER,
        "http2": False,
        "api_routes": {"/health": "readyz"},
        "extras": {"body": {"temperature": 0, "logit_bias": NEVER_END}},
    }
    profile = "kind=synchronous" if count == 1 else f"kind=concurrent,streams={count}"
    command = [Path(bench.pythons[GUIDELLM]).with_name("guidellm"), "run"]
    command += ["--backend", json.dumps(backend), "--profile", profile]
    command += ["--tokenizer", f"kind=huggingface_auto,model={bench.model.resolve()}"]
    command += ["--data", f"kind=json_file,path={data}"]
    command += ["--constraint", f"kind=max_requests,count={len(texts)}"]
    command += ["--output", f"kind=json,path={report}", "--disable-console"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{GUIDELLM} ended: {(done.stdout + done.stderr)[-2000:]}")
    found = json.loads(report.read_text(encoding="utf-8"))["benchmarks"][0]["metrics"]
    assert found["request_totals"]["successful"] == len(texts), found["request_totals"]
    return {
        "rate": found["output_tokens_per_second"]["successful"]["mean"],
        "first": found["time_to_first_token_ms"]["successful"]["median"],
    }


def took(found: list[dict[str, Any]]) -> float:
    """Seconds from the first request to the last piece."""
    return max(each["ended"] for each in found) - min(each["sent"] for each in found)


def mid(turns: list[dict[str, float]]) -> float:
    """The median rate."""
    return median(each["rate"] for each in turns)


def spread(numbers: list[float], digits: int = 2) -> str:
    """The median, and the middle half."""
    if len(numbers) < 2:
        return f"{numbers[0]:.{digits}f}"
    low, middle, high = quantiles(numbers, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def save_plain(directory: Path) -> None:
    """Write it as transformers does."""
    from truthgpt_services import ModelService

    service = ModelService()
    service.load_model(decode.MODEL).save_pretrained(directory)
    service.load_tokenizer(decode.MODEL).save_pretrained(directory)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
