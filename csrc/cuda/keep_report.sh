#!/bin/sh
# keep_report.sh COMPILER ARGS...: runs the compiler and keeps ptxas's report beside the object file, for
# tests/simt/check_resources.py.
object=/dev/null
for argument; do
  [ "$previous" = "-o" ] && object=$argument
  previous=$argument
done
"$@" 2> "$object.ptxas"
status=$?
grep -v -e '^ptxas info' -e 'bytes stack frame' -e '^$' "$object.ptxas" >&2
exit $status
