"""`python -m longreel.host.checkpoints`: the converter's command under the name it had before host/files/ was made."""

from __future__ import annotations

from .files.checkpoints import main

if __name__ == "__main__":
    raise SystemExit(main())
