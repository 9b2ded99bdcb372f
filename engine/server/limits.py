"""What a client may use up: bytes, seconds and numbers. One place, so that the documentation can list them."""

from __future__ import annotations

from dataclasses import dataclass

N_LIMIT = 8  # replies for one request
PROMPTS_LIMIT = 32
MESSAGES_LIMIT = 4096
DEPTH_LIMIT = 64  # of JSON
STOP_LIMIT = 16
STOP_LENGTH = 256
BIAS_LIMIT = 1024
TOP_LOGPROBS_LIMIT = 20
TOOLS_LIMIT = 128
SESSIONS_LIMIT = 1024  # conversations that /v1/chat/interactive remembers


@dataclass(frozen=True, slots=True)
class Limits:
    """Times are in seconds, sizes in bytes."""

    body: int = 8 << 20
    headers: int = 32 << 10
    header_lines: int = 100
    header_s: float = 10.0  # from the first byte of a request to the end of its headers
    body_s: float = 30.0
    keep_alive_s: float = 30.0
    stall_s: float = 30.0  # a stream whose reader takes nothing for so long is cut off
    ping_s: float = 15.0  # a stream without a token for so long gets a comment, so that proxies keep it open
    connections: int = 512
    send_buffer: int = 256 << 10  # of a socket: what a stalled reader can hold up
