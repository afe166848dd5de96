"""Start `truthgpt serve`, ask the model one question over HTTP, and stop the server.

python examples/serve_one_request.py build/demo "Why is the sky blue?"
"""

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

model, question = sys.argv[1:]
command = [Path(sys.executable).with_name("truthgpt"), "serve", f"model={model}", "--port", "0"]
server = subprocess.Popen(
    command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, bufsize=1
)
assert server.stderr is not None
url = ""
for line in server.stderr:
    print(line, end="")
    if found := re.search(r"http://\S+", line):
        url = found[0]
        break
if not url:
    sys.exit("The server did not start: what it said stands above.")
threading.Thread(target=server.stderr.read, daemon=True).start()

said = ""
# Until the model was compared with its report.
for _ in range(120):
    try:
        urlopen(f"{url.removesuffix('/v1')}/readyz").close()
        break
    except HTTPError as error:
        said = error.read().decode()
        time.sleep(0.5)
else:
    server.terminate()
    sys.exit(said)

body = {
    "model": "model",
    "messages": [{"role": "user", "content": question}],
    "max_tokens": 64,
    "temperature": 0,
}
request = Request(
    f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
)
with urlopen(request) as response:
    answer = json.load(response)
print(f"> {question}\n{answer['choices'][0]['message']['content']}\n{answer['usage']}")
server.terminate()
sys.exit(server.wait())
