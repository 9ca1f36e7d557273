"""ERTA Compare (placeholder until the metrics are in)."""
from __future__ import annotations
from comfy_api.latest import io
class ERTACompare(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="ERTACompare", display_name="ERTA Compare", category="ERTACache", inputs=[], outputs=[])
    @classmethod
    def execute(cls):
        return io.NodeOutput()
