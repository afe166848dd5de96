"""OpenVINO GenAI's continuous batching behind `/v1/chat/completions`, for `serve.py`.

It has what a comparison needs and nothing else: messages, `max_tokens`, greedy, streaming. Run it
with the Python that has openvino-genai: `openvino_server.py FILE PORT SEQUENCES`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import Any


class Pipeline:
    """Generates what is asked for, on a thread of its own."""

    def __init__(self, file: str, sequences: int) -> None:
        import openvino_genai

        self.api = openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs, scheduler.cache_size = sequences, 1
        scheduler.enable_prefix_caching = True
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(file, scheduler, "CPU")
        self.tokenizer = self.pipeline.get_tokenizer()
        self.changed = threading.Condition()
        self.asked: list[tuple[Any, Any, int]] = []
        threading.Thread(target=self.run, daemon=True).start()

    def ask(self, prompt: Any, tell: Any, count: int) -> None:
        """Have a prompt continued; `tell` is called with ids as they come, and with None."""
        with self.changed:
            self.asked.append((prompt, tell, count))
            self.changed.notify()

    def run(self) -> None:
        """Take steps for ever."""
        live: list[tuple[Any, Any]] = []
        number = 0
        while True:
            with self.changed:
                while not self.asked and not live:
                    self.changed.wait()
                asked, self.asked = self.asked, []
            for prompt, tell, count in asked:
                number += 1
                config = self.api.GenerationConfig(
                    max_new_tokens=count, min_new_tokens=count, ignore_eos=True, do_sample=False
                )
                live.append((self.pipeline.add_request(number, prompt, config), tell))
            if self.pipeline.has_non_finished_requests():
                self.pipeline.step()
            for handle, tell in list(live):
                while handle.can_read():
                    tell([each for part in handle.read().values() for each in part.generated_ids])
                if handle.get_status() != self.api.GenerationStatus.RUNNING:
                    live.remove((handle, tell))
                    tell(None)


async def answer(
    pipeline: Pipeline, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer one request."""
    length = 0
    path = (await reader.readline()).split()[1]
    while (line := (await reader.readline()).strip()) != b"":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    start = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\n\r\n"
    writer.write(start)
    if path.endswith(b"/chat/completions"):
        body = json.loads(await reader.readexactly(length))
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Any]()
        text = pipeline.tokenizer.apply_chat_template(body["messages"], True)
        prompt = pipeline.tokenizer.encode(text, add_special_tokens=False).input_ids
        pipeline.ask(
            prompt,
            lambda ids: loop.call_soon_threadsafe(pieces.put_nowait, ids),
            body["max_tokens"],
        )
        tokens: list[int] = []
        known = ""
        while (ids := await pieces.get()) is not None:
            tokens += ids
            text = pipeline.tokenizer.decode(tokens[-16:])
            piece, known = text[len(known) :] or text[-1:], text if len(tokens) < 16 else ""
            choice = {"index": 0, "delta": {"content": piece}}
            writer.write(b"data: %s\n\n" % json.dumps({"choices": [choice]}).encode())
            await writer.drain()
        used = {"choices": [], "usage": {"completion_tokens": len(tokens)}}
        writer.write(b"data: %s\n\n" % json.dumps(used).encode())
    writer.close()


async def main() -> None:
    """Serve for ever."""
    file, port, sequences = sys.argv[1:]
    pipeline = Pipeline(file, int(sequences))

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(pipeline, reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", int(port))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
