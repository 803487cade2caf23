"""Preprocess every text of a row, whatever the row is: clean it, redact it, and describe a bad row."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from megatron_chimed.data.clean import clean, redact
from megatron_chimed.data.fields import unread_fields
from megatron_chimed.data.json_values import strings_of
from megatron_chimed.data.rejected import excerpt
from megatron_chimed.data.sources import Fault
from megatron_chimed.errors import InputError


class Unusable(InputError):
    """A row in good form that holds nothing of use. The message is the reason."""


@dataclass
class PreparedRow:
    """Result of one row: the `reason` why it is dropped, with an excerpt, or what a subclass adds.

    malformed: the row's form is at fault. signatures: one for each deduplicator. changes: what was done to the row, by
    kind. redacted: personal data replaced, by kind. unread: fields that hold something and were not read, by name.
    """

    line: int
    reason: str = ""
    malformed: bool = False
    excerpt: str = ""
    signatures: tuple = ()
    changes: dict[str, int] | None = None
    redacted: dict[str, int] | None = None
    unread: dict[str, int] | None = None


@dataclass(frozen=True)
class Preprocessor:
    """Cleans and redacts texts, or leaves out either."""

    clean: bool = True
    redact: bool = True

    def preprocess(self, text: str, redacted: Counter, cleaned: Counter | None = None) -> str:
        """Clean and redact a text, and strip white space around it; the counters are counted up by kind and by rule.

        Raises InputError for bytes that were no characters, and for half a character that would stay.
        """
        self._require_characters(text)
        if self.clean:
            text = clean(text, cleaned)
        if self.redact:
            text, counts = redact(text)
            redacted.update(counts)
        return text.strip()

    def _require_characters(self, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if 0xDC80 <= ord(text[error.start]) <= 0xDCFF:
                raise InputError("invalid bytes: not in the file's encoding") from None
            if not self.clean:
                raise InputError(f"unpaired surrogate: character {error.start}") from None

    def unread(self, row: Any) -> Counter:
        """Count the fields of a watched row that were not read, by names without personal data."""
        found: Counter = Counter()
        for name, number in unread_fields(row).items():
            found[redact(name)[0] if self.redact else name] += number
        return found

    def fault(self, error: InputError, row: Any) -> dict[str, Any]:
        """Make the fields of `PreparedRow` for a row that raised the error, its reason redacted too."""
        reason = redact(str(error))[0] if self.redact else str(error)  # it may quote the row
        return {"reason": reason, "malformed": not isinstance(error, Unusable), "excerpt": self.excerpt(row)}

    def excerpt(self, row: Any) -> str:
        """Cut the beginning of a row for the file of rejected rows."""
        content = row.excerpt if isinstance(row, Fault) else " | ".join(strings_of(row))
        return excerpt(content, as_it_is=not (self.clean or self.redact))
