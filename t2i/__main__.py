"""`t2i` and `python -m t2i`: the exit codes stand here. 0 done, 1 the run failed, 2 bad input, 130 interrupted."""

import os
import sys


def main() -> None:
    """Run the command line; a fault of the user's is one message without a traceback."""
    from t2i.cli.app import app
    from t2i.cli.messages import message_of
    from t2i.errors import RunFailed

    try:
        app()
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":  # every rank meets the same fault
            print(f"t2i: {message_of(error)}", file=sys.stderr)
        sys.exit(2)
    except RunFailed as error:
        print(f"t2i: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"t2i: {disk_problem(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("t2i: interrupted", file=sys.stderr)
        sys.exit(130)


def disk_problem(error: OSError) -> str:
    """Returns the message for a failure of the file system: the path, the cause and the free space."""
    from pathlib import Path

    from t2i.files import free_space

    place = error.filename or error.filename2
    if not isinstance(place, str | bytes | os.PathLike):
        return f"a file could not be read or written ({error.strerror or error})"
    path = Path(os.fsdecode(place))
    return f"{path}: {error.strerror or error} ({free_space(path)})"


if __name__ == "__main__":
    main()
