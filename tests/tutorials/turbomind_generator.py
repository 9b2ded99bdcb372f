"""The first tutorial's script (section 2.5): the engine without a pipeline. Only the import and the model
differ."""

from lmtop import turbomind as tm

model_path = "demo"
tm_model = tm.TurboMind.from_pretrained(model_path, model_name="demo")
generator = tm_model.create_instance()

query = "Hi, pls intro yourself"
prompt = tm_model.model.get_prompt(query)
input_ids = tm_model.tokenizer.encode(prompt)

for outputs in generator.stream_infer(session_id=0, input_ids=[input_ids]):
    res, tokens = outputs[0]

response = tm_model.tokenizer.decode(res.tolist())
print(response)
