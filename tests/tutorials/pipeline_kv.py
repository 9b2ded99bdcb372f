"""The second tutorial's script for a smaller KV cache. Only the import and the model's path differ."""

from lmtop import TurbomindEngineConfig, pipeline

backend_config = TurbomindEngineConfig(cache_max_entry_count=0.2)

pipe = pipeline("demo", backend_config=backend_config)
response = pipe(["Hi, pls intro yourself", "上海是"])
print(response)
