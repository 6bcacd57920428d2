"""python -m sumexp [demo | bench | config]"""

import sys

USAGE = """usage: python -m sumexp COMMAND

  demo     train a softmax regression on handwritten digits, and look at its logits
  bench    time sumexp against its peers (python -m sumexp bench --help)
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
    if command == "demo":
        from . import demo

        return demo.main(rest)
    if command == "bench":
        import runpy

        sys.argv = ["python -m sumexp bench", *rest]
        runpy.run_module("sumexp.bench", run_name="__main__")
        return 0
    asked = command in ("-h", "--help", "")
    print(USAGE, end="", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
