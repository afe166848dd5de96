"""Prompt lookup decoding: what followed the last tokens before is tried at once.

See: Saxena, A. (2023). Prompt Lookup Decoding.
"""

from truthgpt_core import hookimpl
from truthgpt_core.decoding import Decoder


class PromptLookup(Decoder):
    name = "prompt-lookup"
    requires = ("logits", "crop")

    def __init__(self, tokens):
        self.most = tokens

    def decode(self, engine, state, prompt, choose):
        tokens, given, draft = list(prompt), list(prompt), []
        while True:
            (logits,) = engine.forward([state], [given + draft], all_logits=True)
            found = []
            for index in range(len(draft) + 1):
                found.append(choose(logits[len(given) - 1 + index], tokens + found))
                if index < len(draft) and found[-1] != draft[index]:
                    break
            engine.crop(state, len(tokens) + len(found) - 1)
            tokens += found
            yield found
            given, draft = found[-1:], self.draft(tokens)

    def draft(self, tokens, size=2):
        end = tokens[-size:]
        for begin in range(len(tokens) - size - 1, -1, -1):
            if tokens[begin : begin + size] == end:
                return tokens[begin + size : begin + size + self.most]
        return []


@hookimpl
def make_decoder(options):
    tokens = options.pop("prompt_lookup", 0)
    return PromptLookup(tokens) if tokens else None
