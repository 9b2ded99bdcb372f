"""What the later tutorials do with a pipeline: engine and generation settings, messages, pieces."""

from lmtop import GenerationConfig, TurbomindEngineConfig, pipeline

backend_config = TurbomindEngineConfig(tp=1, quant_policy=8, session_len=1024)
gen_config = GenerationConfig(top_p=0.8, top_k=40, temperature=0.8, max_new_tokens=64)

pipe = pipeline("demo", backend_config=backend_config)
prompts = [[{"role": "user", "content": "Hi, pls intro yourself"}], [{"role": "user", "content": "上海是"}]]
print(pipe(prompts, gen_config=gen_config))
for item in pipe.stream_infer(prompts, gen_config=gen_config):
    print(item)
