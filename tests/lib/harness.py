# SPDX-License-Identifier: BSD-2-Clause
"""Cases of a script test, and what every such script needs.

A script is a list of functions marked @case; main() runs them all (or those
whose names contain a word of the command line), says how each went, and exits
0, 1 or 77 as the runner wants it. One case's failure does not hide the next
one's.
"""
import os
import random
import shutil
import sys
import tempfile
import time
import traceback

CASES = []
TIMEOUT_SCALE = float(os.environ.get("REWIND_TIMEOUT_SCALE", "1"))
SANITIZED = os.environ.get("REWIND_SANITIZE", "none") != "none"


class Skip(Exception):
    """This case can't be had here; says why."""


def case(function):
    CASES.append(function)
    return function


def table(function_of_row, rows, name="%s"):
    """One case for each row; row[0] is its name."""
    for row in rows:
        def run(row=row):
            function_of_row(*row[1:])
        run.__name__ = name % row[0]
        CASES.append(run)


_shared = []


def shared(factory):
    """Several cases use one of these, made when it is first asked for; main()
    sees to it that it is still well after each case, and ends it."""
    slot = []

    def get():
        if not slot:
            slot.append(factory())
            _shared.append((factory.__name__, slot))
        return slot[0]
    return get


def check_shared():
    for _, slot in _shared:
        for thing in slot:
            try:
                thing.check_alive()
            except BaseException:
                slot.clear()    # the next case gets a fresh one
                raise


def end_shared():
    """One function a shared thing, each to be run as a case."""
    for name, slot in _shared:
        def end(slot=slot):
            while slot:
                slot.pop().__exit__(None, None, None)
        end.__name__ = "end of " + name
        yield end


def shown(value):
    """Option replies are easier to know in hexadecimal."""
    if isinstance(value, int) and value >= 1 << 31:
        return "%#x" % value
    if isinstance(value, (set, tuple)):
        return "{%s}" % ", ".join(shown(v) for v in value)
    text = repr(value)
    return text if len(text) < 400 else text[:400] + "..."


def expect(found, wanted, what):
    """`wanted` is a value, or a tuple or set of values that will do."""
    if found == wanted or (isinstance(wanted, (tuple, set))
                           and not isinstance(found, (tuple, set, list))
                           and found in wanted):
        return
    raise AssertionError("%s: expected %s, got %s"
                         % (what, shown(wanted), shown(found)))


def expect_bytes(found, wanted, offset, what):
    """Equal, or where and how they differ."""
    if found == wanted:
        return
    if len(found) != len(wanted):
        raise AssertionError("%s: %d bytes instead of %d"
                             % (what, len(found), len(wanted)))
    first = next(i for i in range(len(found)) if found[i] != wanted[i])
    last = next(i for i in reversed(range(len(found)))
                if found[i] != wanted[i])
    raise AssertionError(
        "%s: bytes differ from %#x to %#x\n  read   %s\n  wanted %s" % (
            what, offset + first, offset + last + 1,
            bytes(found[first:first + 32]).hex(),
            bytes(wanted[first:first + 32]).hex()))


def seed():
    """The run's seed: $REWIND_SEED, else a fresh one. Printed, so that a
    failure can be had again."""
    value = os.environ.get("REWIND_SEED")
    value = int(value, 0) if value else random.SystemRandom().getrandbits(32)
    print("REWIND_SEED=%d" % value, flush=True)
    return value


_scratch = None


def scratch(name=""):
    """A path in a directory that is gone when main() returns."""
    global _scratch
    if _scratch is None:
        _scratch = tempfile.mkdtemp(prefix="t")
        if len(_scratch) > 60:      # a socket's path must fit 104 bytes
            shutil.rmtree(_scratch)
            _scratch = tempfile.mkdtemp(prefix="rw-t", dir="/tmp")
    return os.path.join(_scratch, name)


def run_case(function, results):
    name = function.__name__
    start = time.monotonic()
    try:
        function()
        check_shared()
    except Skip as e:
        results["skipped"].append(name)
        print("skip  %s: %s" % (name, e), flush=True)
    except Exception:  # a failed case must not stop the others
        results["failed"].append(name)
        print("FAIL  %s\n%s" % (name, traceback.format_exc()), flush=True)
    else:
        results["passed"].append(name)
        print("ok    %s (%.1f s)" % (name, time.monotonic() - start),
              flush=True)


def main():
    wanted = sys.argv[1:]
    results = {"passed": [], "failed": [], "skipped": []}
    try:
        for function in CASES:
            if not wanted or any(w in function.__name__ for w in wanted):
                run_case(function, results)
        for function in end_shared():
            run_case(function, results)
    finally:
        if _scratch is not None:
            shutil.rmtree(_scratch, ignore_errors=True)
    print(", ".join("%d %s" % (len(names), how)
                    for how, names in results.items()))
    if results["failed"]:
        print("failed: " + "; ".join(results["failed"]))
        sys.exit(1)
    sys.exit(77 if results["skipped"] and len(results["passed"]) == 0 else 0)
