"""The HTTP server: OpenAI's API, LMDeploy's older forms of it, and what operates and watches the engine.

One thread runs the event loop; the engine's own threads are reached through `exchange` alone. Nothing here imports
torch. Every request passes `protocol` (deadlines and limits of a connection), `gate` (key, host, origin) and
`strictjson` (what JSON may be) before a handler sees it.
"""
