"""The method: profiles, plans and their replay, on plain tensors. Never imports ComfyUI."""

VERSION = "0.1.0"
