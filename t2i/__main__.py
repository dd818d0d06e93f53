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
    except KeyboardInterrupt:
        print("t2i: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
