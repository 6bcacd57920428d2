"""python -m sumexp [demo | bench | config]"""

import os
import sys

USAGE = """usage: python -m sumexp COMMAND

  demo     train a softmax regression on handwritten digits, and look at its logits
           demo hmm: read mistyped text by a hidden Markov model, beside hmmlearn
  bench    time the functions on this machine, beside a copy (python -m sumexp bench --help)
  config   print what was built and what was chosen
"""


def main(argv):
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command in ("config", "demo") and rest in (["-h"], ["--help"]):
        command, rest = "", []
    if command == "config" and not rest:
        from . import show_config

        show_config()
        return 0
    if command == "demo" and rest[:1] == ["hmm"]:
        from . import demo_hmm

        return demo_hmm.main(rest[1:])
    if command == "demo":
        from . import demo

        return demo.main(rest)
    if command == "bench":
        from . import _bench

        return _bench.main(rest)
    asked = command in ("-h", "--help", "")
    print(USAGE, end="", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:  # | head; what is left in the buffer would find the pipe closed again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
