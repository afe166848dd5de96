from truthgpt_core import Applied, Coverage, Optimization


class BFloat16(Optimization):
    name = "bfloat16"

    def apply(self, model, context):
        names = tuple(name for name, _ in model.named_parameters())
        return Applied(model.bfloat16(), Coverage("parameters", names))

    def restore(self, model, context):
        return model.bfloat16()
