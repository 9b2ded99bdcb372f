"""The second tutorial's first Python script: two prompts at once. Only the import and the model's path
differ."""

from lmtop import pipeline

pipe = pipeline("demo")
response = pipe(["Hi, pls intro yourself", "上海是"])
print(response)
