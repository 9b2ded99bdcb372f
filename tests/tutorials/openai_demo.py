"""The tutorials' OpenAI client. Only the address, which is an argument here, differs."""

import sys

from openai import OpenAI

client = OpenAI(api_key="YOUR_API_KEY", base_url=f"{sys.argv[1]}/v1")
model_name = client.models.list().data[0].id
response = client.chat.completions.create(
    model=model_name,
    messages=[
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hi, pls intro yourself"},
    ],
    temperature=0.8,
    top_p=0.8,
)
print(response)
