"""Whether a service answers at its /healthz, as an exit status: the health check of containers.

python -m deploy.health http://127.0.0.1:9465/healthz /run/secrets/metrics_token
"""

import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_TIMEOUT_S: Final = 4.0


def check(url: str, token_file: str = "") -> str:
    """Why the service is not healthy, in a sentence; empty when it is."""
    request = urllib.request.Request(url)  # noqa: S310, the operator's own address
    try:
        if token_file:
            request.add_header("Authorization", f"Bearer {Path(token_file).read_text().strip()}")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return f"{url} answers {error.code}: {error.read(500).decode(errors='replace').strip()}"
    except OSError as error:
        return f"{url} does not answer: {error}"
    return ""


def main(arguments: Sequence[str]) -> int:
    """0 when healthy, 1 when not, with the reason on standard error."""
    if len(arguments) not in (1, 2):
        print("usage: python -m deploy.health URL [TOKEN_FILE]", file=sys.stderr)
        return 2
    problem = check(*arguments)
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
