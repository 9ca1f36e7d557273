"""The nodes as ComfyUI's V3 schema declares them."""

from comfy_api.latest import ComfyExtension, io

from ..comfy_erta.routes import register
from .compare import ERTACompare
from .options import ERTAOptions
from .profiling import ERTALoadProfile, ERTAProfile
from .sampling import ERTACache, ERTACachedSampler, ERTATimestepAdjuster


class ERTACacheExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            *(ERTACachedSampler, ERTACache, ERTAProfile, ERTALoadProfile),
            *(ERTATimestepAdjuster, ERTACompare, ERTAOptions),
        ]


async def comfy_entrypoint() -> ERTACacheExtension:
    register()
    return ERTACacheExtension()
