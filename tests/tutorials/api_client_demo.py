"""LMDeploy's own client in the tutorials' way. Only the import and the address, an argument here, differ."""

import sys

from lmtop import APIClient

api_client = APIClient(sys.argv[1])
model_name = api_client.available_models[0]
messages = [{"role": "user", "content": "Hi, pls intro yourself"}]
for item in api_client.chat_completions_v1(model=model_name, messages=messages):
    print(item)
for item in api_client.completions_v1(model=model_name, prompt="Once upon a time"):
    print(item)
for text, tokens, finish_reason in api_client.chat("Hi, pls intro yourself", session_id=1, stream=True):
    print(text, tokens, finish_reason)
api_client.end_session(1)
