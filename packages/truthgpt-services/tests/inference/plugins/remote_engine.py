"""An engine that forwards to a server with the completions interface of OpenAI."""

import json
import urllib.request

from truthgpt_core import TruthGPTError, hookimpl
from truthgpt_core.decoding import Capabilities, Engine


class Remote(Engine):
    name = "remote"
    capabilities = Capabilities(logits=False, prompt_logprobs=False, crop=False, masks=False)

    def __init__(self, url):
        self.url = url

    def generate(self, prompt, params):
        chat = not isinstance(prompt, str)
        body = {
            "model": "any",
            ("messages" if chat else "prompt"): prompt,
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "stop": list(params.stop),
            "stream": True,
        }
        request = urllib.request.Request(
            f"{self.url}/{'chat/' if chat else ''}completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as lines:
                for line in lines:
                    data = line.decode().removeprefix("data:").strip()
                    if not data or data == "[DONE]":
                        continue
                    (choice,) = json.loads(data)["choices"]
                    yield choice["delta"]["content"] if chat else choice["text"]
        except OSError as error:
            raise TruthGPTError(f"{self.url} does not answer: {error}") from error
        return "length"


@hookimpl
def make_engine(source, options):
    url = options.given.pop("url", None)
    return None if url is None else Remote(url)
