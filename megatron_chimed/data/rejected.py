"""Rejected rows: the kind of a reason, and the excerpt that people see in the file of rejected rows."""

from megatron_chimed.data.redact import redact

EXCERPT_CHARS = 200
WINDOW = 4000  # characters that are searched for personal data; an excerpt is the beginning of them
MARGIN = 200  # characters at the window's end that are never shown: an address or number may be cut there


def kind_of(reason: str) -> str:
    """Return the kind of a reason, by which they are counted: what stands before its details."""
    for mark in (" (", " at ", ", ", ": "):
        reason = reason.partition(mark)[0]
    return reason


def writable(text: str) -> str:
    """The text with "?" for halves of characters, which JSON may hold and no file can."""
    return text.encode(errors="replace").decode()


def excerpt(content: bytes | str, as_it_is: bool = False) -> str:
    """Cut the beginning of a rejected row, for people, at most EXCERPT_CHARS characters; without personal data unless
    it is wanted as it is. Bytes are read as UTF-8; what is no character becomes U+FFFD."""
    if isinstance(content, bytes):
        text = content[: 4 * WINDOW].decode(errors="replace")
    else:
        text = content[:WINDOW].encode(errors="replace").decode()
    if as_it_is:
        return text[:EXCERPT_CHARS]
    redacted, _ = redact(text[:WINDOW])  # before it is cut: half a number would not be found
    return (redacted[:-MARGIN] if len(text) >= WINDOW else redacted)[:EXCERPT_CHARS]
