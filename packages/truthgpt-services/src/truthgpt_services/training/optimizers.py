"""The optimizers that can be asked for by name, and what they decay.

They are torch's own classes, components of the factory `optimizer_factory`:

    groups = parameter_groups(model, weight_decay=0.1)
    optimizer = factory.create("adamw", groups, lr=3e-4)

Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from truthgpt_core.errors import TruthGPTError

if TYPE_CHECKING:
    from torch import nn

# Those of torch.optim that step without a closure, on dense gradients of any shape. That
# leaves out LBFGS, which wants a closure; SparseAdam; and Muon, which takes matrices alone.
OPTIMIZERS: Mapping[str, str] = {
    "adadelta": "torch.optim:Adadelta",
    "adafactor": "torch.optim:Adafactor",
    "adagrad": "torch.optim:Adagrad",
    "adam": "torch.optim:Adam",
    "adamax": "torch.optim:Adamax",
    "adamw": "torch.optim:AdamW",
    "asgd": "torch.optim:ASGD",
    "nadam": "torch.optim:NAdam",
    "radam": "torch.optim:RAdam",
    "rmsprop": "torch.optim:RMSprop",
    "rprop": "torch.optim:Rprop",
    "sgd": "torch.optim:SGD",
}
"""Each optimizer's name and where it is, as "module:attribute".

`adafactor` is torch's, whose arguments are not those of transformers' class of that name.
"""

OPTIMIZER_ALIASES: Mapping[str, str] = {"adamw_torch": "adamw"}
"""What transformers' `TrainingArguments` calls one of them otherwise."""


_RIVALS = frozenset({"fused", "foreach", "capturable", "differentiable"})


class ParameterError(TruthGPTError):
    """A model's parameters cannot be trained as asked."""


def fast_options(
    optimizer: object, options: Mapping[str, Any], groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the options of an optimizer, with `fused` for torch's Adam and AdamW.

    One kernel then reads and writes each parameter once, which takes a fraction of the time;
    the last bits of what it computes are others.

    Args:
        optimizer: its class.
        options: what it is given; if one of them says how to compute, they stay as they are.
        groups: of its parameters.
    """
    from torch import optim

    known = optimizer in (optim.Adam, optim.AdamW) and not _RIVALS & options.keys()
    parameters = [each for group in groups for each in group["params"]]
    if known and all(each.device.type in ("cpu", "cuda") for each in parameters):
        return {**options, "fused": True}
    return dict(options)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group a model's trainable parameters by whether weight decay is for them.

    Not decayed are parameters of fewer than two dimensions (biases and the gains of norms)
    and embeddings. Decay shrinks an embedding, and the norm that follows it then enlarges
    the gradient: OLMo 2 (arXiv:2501.00656, section 3.4) left it out for that. minGPT groups
    as this does; transformers' `Trainer` decays embeddings.

    Args:
        model: whose parameters are to be trained. A matrix that is tied to an embedding, as
            an output layer's may be, counts as the embedding.
        weight_decay: of the first group; 0.0 or more.

    Returns:
        Two groups for an optimizer, `{"params": [...], "weight_decay": ...}` each: what is
        decayed, then what is not. Every trainable parameter is in one of them, once, in the
        model's order; frozen ones (`requires_grad` is False) are in neither. A group may be
        empty.

    Raises:
        ParameterError: all parameters are frozen, or `weight_decay` is negative or no
            finite number.
    """
    from torch import nn

    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ParameterError(
            f"The weight decay {weight_decay} is negative or not finite", hint="Give 0.0 or more."
        )
    # By identity: tensors compare element by element.
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    # `parameters` gives a tied parameter once.
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or id(parameter) in embeddings:
            others.append(parameter)
        else:
            decayed.append(parameter)
    if not decayed and not others:
        raise ParameterError(
            f"{type(model).__name__} has no parameter to train: it has none, or all are frozen",
            hint="Set requires_grad of those to train.",
        )
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
