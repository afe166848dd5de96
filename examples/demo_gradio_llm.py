"""A page that asks a model and its optimized version the same question.

    python examples/demo_gradio_llm.py build/demo

This is what `truthgpt demo` does. A model is what `ModelService` loads; each has an
`InferenceService` of its own, and the page streams from it.
"""

from __future__ import annotations

import sys

from truthgpt_core.application import get_application
from truthgpt_plugin_gradio import find_run, listening, load_models, make_app, serve


def main() -> None:
    """Load the models that are named on the command line, and serve the page."""
    application = get_application()
    # The address first: that it is taken is known before models are loaded.
    with listening("127.0.0.1", 0) as where:
        # Of one optimized model, the model that it was made from comes first.
        models = load_models(sys.argv[1:], application)
        for model in models:
            answer = model.service.generate(model.prompt("Say hello."), {"max_new_tokens": 16})
            print(f"{model.spec}, on {model.engine}: {answer!r}")
        # The losses are drawn if one of them was trained with `truthgpt train`.
        serve(make_app(models, run=find_run(models)), where)


if __name__ == "__main__":
    main()
