"""The start of `assay`: from the first line on, a signal ends in a sentence and not a traceback."""

from pipeline.stopping import end_at_once, leave


def main() -> None:
    """Runs the command line."""
    end_at_once()
    from pipeline.cli import main as command  # the imports take half a second

    try:
        command()
    finally:
        leave()


if __name__ == "__main__":
    main()
