"""The examples of the architecture that the project started from, word for word.

Only their import lines differ (`core.` is `truthgpt_core.`) and what they leave to
the reader (`AutoModelForCausalLM`, `MyService`, ...) stands before them. Each runs in a
process of its own, as it would for its reader, with warnings as errors.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


@pytest.fixture
def run(tmp_path: Path, monkeypatch):
    """Run an example between what it needs and what looks at it; return what it prints."""
    monkeypatch.delenv("TRUTHGPT_STRICT", raising=False)

    def run(before: str, example: str, after: str) -> list[str]:
        script = tmp_path / "example.py"
        script.write_text("\n".join(textwrap.dedent(each) for each in (before, example, after)))
        result = subprocess.run(
            [sys.executable, "-W", "error", str(script)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            timeout=60,
        )
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.splitlines()

    return run


def test_service_registry(run) -> None:
    """A decorated class is a service, got by name and made once."""
    printed = run(
        """
        class AutoModelForCausalLM:
            @staticmethod
            def from_pretrained(name):
                return f"model {name}"
        """,
        """
        from truthgpt_core.service_registry import register_service, get_service

        @register_service("model_manager", singleton=True)
        class ModelManager:
            def load_model(self, name):
                return AutoModelForCausalLM.from_pretrained(name)

        # Usar servicio
        manager = get_service("model_manager")
        model = manager.load_model("gpt2")
        """,
        "print(model, get_service('model_manager') is manager)",
    )
    assert printed == ["model gpt2 True"]


def test_event_system(run) -> None:
    """A handler that was subscribed gets the data that is emitted."""
    printed = run(
        "",
        """
        from truthgpt_core.event_system import EventType, on_event, emit_event

        # Suscribirse a eventos
        def on_training_step(event):
            print(f"Step {event.data['step']}: loss={event.data['loss']}")

        on_event(EventType.TRAINING_STEP, on_training_step)

        # Emitir evento
        emit_event(EventType.TRAINING_STEP, {
            "step": 100,
            "loss": 0.5
        })
        """,
        "",
    )
    assert printed == ["Step 100: loss=0.5"]


def test_plugin_system(run) -> None:
    """A `Plugin` registered with the manager is initialized with the registry."""
    printed = run(
        """
        from truthgpt_core.plugin_system import get_plugin_manager

        class MyService:
            pass
        """,
        """
        from truthgpt_core.plugin_system import Plugin, PluginManager

        class MyPlugin(Plugin):
            @property
            def name(self):
                return "my_plugin"

            @property
            def version(self):
                return "1.0.0"

            def initialize(self, registry):
                registry.register("my_service", MyService)

        # Cargar plugin
        manager = get_plugin_manager()
        manager.register_plugin(MyPlugin())
        """,
        """
        from truthgpt_core.service_registry import get_service
        print(type(get_service("my_service")).__name__, isinstance(manager, PluginManager))
        print([str(row.state) for row in manager.rows() if row.name == "my_plugin"])
        """,
    )
    assert printed == ["MyService True", "['active']"]


def test_dynamic_factory(run) -> None:
    """A component registered with no factory reaches the factory of its base class."""
    printed = run(
        """
        import types

        class BaseOptimizer:
            def __init__(self, lr):
                self.lr = lr

        optimizers_module = types.ModuleType("optimizers_module")
        exec("class SGD(BaseOptimizer): pass", {"BaseOptimizer": BaseOptimizer,
             "__name__": "optimizers_module"}, vars(optimizers_module))
        """,
        """
        from truthgpt_core.dynamic_factory import DynamicFactory, register_component

        # Crear factory
        factory = DynamicFactory(base_class=BaseOptimizer)

        # Registrar componente
        @register_component("adamw")
        class AdamWOptimizer(BaseOptimizer):
            pass

        # Auto-registro desde módulo
        factory.auto_register_from_module(optimizers_module)

        # Crear instancia
        optimizer = factory.create("adamw", lr=0.001)
        """,
        "print(type(optimizer).__name__, optimizer.lr, factory.names())",
    )
    assert printed == ["AdamWOptimizer 0.001 ('adamw', 'sgd')"]


def test_initialization(run, tmp_path: Path) -> None:
    """Container, plugins of a directory and emitter are set up as the seed does it."""
    plugins = tmp_path / "plugins"
    plugins.mkdir(mode=0o755)
    plugin = plugins / "greeting.py"
    plugin.write_text(
        "from truthgpt_core import hookimpl\n\n@hookimpl\ndef register_services(registry):\n"
        "    registry.register('greeting', lambda: 'hello')\n"
    )
    plugin.chmod(0o644)
    printed = run(
        """
        from truthgpt_core.event_system import EventType, emit_event, get_event_emitter
        from truthgpt_core.plugin_system import get_plugin_manager

        class ModelService: pass
        class TrainingService: pass
        class InferenceService: pass
        log_training_step = lambda event: print("step", event.data["step"])
        """,
        """
        from truthgpt_core.service_registry import ServiceRegistry, ServiceContainer
        from truthgpt_core.event_system import EventEmitter
        from truthgpt_core.plugin_system import PluginManager

        # Crear contenedor de servicios
        container = ServiceContainer()

        # Configurar servicios
        container.register("model_service", ModelService, singleton=True)
        container.register("training_service", TrainingService, singleton=True)
        container.register("inference_service", InferenceService, singleton=True)

        # Inicializar plugins
        plugin_manager = get_plugin_manager()
        plugin_manager.load_plugins_from_directory("plugins/")

        # Configurar event system
        emitter = get_event_emitter()
        emitter.on(EventType.TRAINING_STEP, log_training_step)
        """,
        """
        from truthgpt_core.service_registry import get_service
        print(type(container.get("model_service")).__name__, get_service("greeting"))
        emit_event(EventType.TRAINING_STEP, {"step": 1})
        """,
    )
    assert printed == ["ModelService hello", "step 1"]


def test_custom_optimizer_plugin(run, tmp_path: Path) -> None:
    """A plugin registers a service and, through `get_factory`, a component."""
    (tmp_path / "optimizers").mkdir()
    (tmp_path / "optimizers" / "custom.py").write_text("class CustomOptimizer: pass\n")
    printed = run(
        "from truthgpt_core.plugin_system import get_plugin_manager",
        """
        from truthgpt_core.plugin_system import Plugin
        from truthgpt_core.service_registry import ServiceRegistry

        class CustomOptimizerPlugin(Plugin):
            @property
            def name(self):
                return "custom_optimizer"

            @property
            def version(self):
                return "1.0.0"

            def initialize(self, registry: ServiceRegistry):
                from optimizers.custom import CustomOptimizer

                # Registrar optimizador
                registry.register("custom_optimizer", CustomOptimizer)

                # Registrar en factory
                from truthgpt_core.dynamic_factory import get_factory
                factory = get_factory("optimizer_factory")
                factory.register("custom", CustomOptimizer)
        """,
        """
        from truthgpt_core.dynamic_factory import get_factory
        from truthgpt_core.service_registry import get_service
        manager = get_plugin_manager()
        manager.register_plugin(CustomOptimizerPlugin())
        print(type(get_service("custom_optimizer")).__name__)
        print(type(get_factory("optimizer_factory").create("custom")).__name__)
        manager.deactivate("custom_optimizer")
        print("custom" in get_factory("optimizer_factory"))
        """,
    )
    assert printed == ["CustomOptimizer", "CustomOptimizer", "False"]


def test_an_event_may_have_no_data(run) -> None:
    """The seed emits TRAINING_STARTED with an empty mapping."""
    printed = run(
        "from truthgpt_core.event_system import EventType, get_event_emitter",
        """
        emitter = get_event_emitter()
        emitter.on(EventType.TRAINING_STARTED, lambda event: print(dict(event.data)))
        emitter.emit(EventType.TRAINING_STARTED, {})
        """,
        "",
    )
    assert printed == ["{}"]
