"""Exceptions named by the duty of whoever catches them.

MegawatchError
├── Retry        transient: broker away, server busy  -> wait with backoff, same work again
├── Reject       this datum is bad for ever           -> dead letter with the reason, go on
├── Unavailable  a device or field cannot be read     -> NULL and a counter, keep the others
└── Refuse       settings, schema version, misuse     -> say it in one sentence, exit 2
"""


class MegawatchError(Exception):
    """Root of every error that Megawatch raises on purpose."""


class Retry(MegawatchError):
    """Transient: the same work will succeed later."""


class Reject(MegawatchError):
    """This datum is bad for ever; the message is the reason kept with the dead letter."""


class Unavailable(MegawatchError):
    """A device or a field of it cannot be read now."""


class Refuse(MegawatchError):
    """Bad settings, a newer schema, misuse: the message is the sentence that the user reads."""
