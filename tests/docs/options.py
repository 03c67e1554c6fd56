#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Each command's --help (which is made from the table that parses), its man
page and the completions name the same options, with the same short names and
arguments; and serve knows every option that qemu-nbd has."""
import os
import re
import shutil
import subprocess
import sys

REWIND = os.environ["REWIND"]
MAN = os.path.join(os.environ["REWIND_SRC"], "docs", "man")
faults = []


def output(*argv):
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True,
                          timeout=60, stdin=subprocess.DEVNULL)
    return done.stdout


def commands():
    """The commands that `rewind help` lists."""
    text = output(REWIND, "help").split("Commands:\n")[1].split("\n\n")[0]
    return [line.split()[0] for line in text.splitlines()]


def options_of_help(text):
    """{long: (short, argument)} from lines like "  -x, --name=ARG  text"."""
    found = {}
    for m in re.finditer(r"^ {2}(?:-(\w), | {4})--([\w-]+)"
                         r"(?:(\[?)=(\w+)\]?)?(?= |$)", text, re.M):
        short, name, optional, argument = m.groups()
        found[name] = (short, argument, bool(optional))
    return found


def options_of_man(path):
    """The same from a man page: items that begin with a flag. Several long
    names of one item share its short name and argument."""
    found = {}
    with open(path, encoding="utf-8") as f:
        text = f.read()
    for item in re.findall(r"^\.It (Fl .*)", text, re.M):
        short, argument, optional, names = None, None, False, []
        for part in re.split(r" , (?:Fl )?", item[len("Fl "):]):
            words = part.split()
            name = words[0]
            if "Ar" in words:
                argument = words[words.index("Ar") + 1]
            optional = optional or "Op" in words
            if name.startswith("-"):
                names.append(name[1:])
            else:
                short = name
        for name in names:
            found[name] = (short, argument, optional)
    return found


def options_of_bash(command):
    """(words, options that take a value) of a command in the script."""
    text = output(REWIND, "completion", "bash")
    pattern = r"^    ''\)(.*?)esac ;;" if command is None else \
        r"^    %s\)(.*?)esac ;;" % command
    part = re.search(pattern, text, re.M | re.S).group(1)
    words = re.search(r"words='([^']*)'", part).group(1).split()
    valued = re.findall(r"^ +(?:-\w\|)?--([\w-]+)\) values=", part, re.M)
    return set(words), set(valued)


def options_of_zsh(command):
    text = output(REWIND, "completion", "zsh")
    pattern = r"_arguments -C(.*?)case" if command is None else \
        r"^ +%s\) _arguments -S(.*?) ;;" % command
    part = re.search(pattern, text, re.M | re.S).group(1)
    return set(re.findall(r"'\*(--?[\w-]+?)(?:\+|=-?)?\[", part))


def options_of_fish(command):
    text = output(REWIND, "completion", "fish")
    condition = "__fish_use_subcommand" if command is None else \
        "'__fish_seen_subcommand_from %s'" % command
    found = set()
    for line in text.splitlines():
        if condition in line.replace("'__fish_use_subcommand'",
                                     "__fish_use_subcommand"):
            found.update("-" + s for s in re.findall(r" -s (\w)", line))
            found.update("--" + s for s in re.findall(r" -l ([\w-]+)", line))
    return found


def words_of(options):
    words = {"--" + name for name in options}
    return words | {"-" + o[0] for o in options.values() if o[0]}


def compare(what, found, expected):
    for extra in sorted(set(found) - set(expected)):
        faults.append(f"{what} has {extra}, --help has not")
    for missing in sorted(set(expected) - set(found)):
        faults.append(f"{what} lacks {missing}")


def check_command(command):
    """`command` None: the options before the command."""
    argv = [REWIND] + ([command] if command else []) + ["--help"]
    text = output(*argv)
    options = options_of_help(text)
    label = command or "rewind"
    # Every line that looks like an option was understood.
    lines = re.findall(r"^ {2}(?:-\w, | {4})--", text, re.M)
    if len(lines) != len(options) or not options:
        faults.append(f"{label} --help: {len(lines)} options, "
                      f"{len(options)} understood")
    page = "rewind.1" if command in (None, "help") else f"rewind-{command}.1"
    manual = options_of_man(os.path.join(MAN, page))
    if command != "help":  # rewind.1 says that every command has -h
        compare(page, manual, options)
        for name in sorted(set(manual) & set(options)):
            ours, theirs = options[name], manual[name]
            # -s belongs to both of --snapshot and --ephemeral.
            if ours != theirs and not (name == "ephemeral" and
                                       theirs[0] == "s"):
                faults.append(f"{page} says --{name} is {theirs}, --help "
                              f"{ours}")
    words, valued = options_of_bash(command)
    compare(f"bash completion of {label}", words, words_of(options))
    compare(f"bash completion's values of {label}", valued,
            {n for n, o in options.items() if o[1]})
    compare(f"zsh completion of {label}", options_of_zsh(command),
            words_of(options))
    compare(f"fish completion of {label}", options_of_fish(command),
            words_of(options))


def check_qemu_nbd():
    """What qemu-nbd takes, serve takes or refuses by name."""
    if shutil.which("qemu-nbd") is None:
        print("no qemu-nbd to compare with")
        return
    ours = options_of_help(output(REWIND, "serve", "--help"))
    text = output("qemu-nbd", "--help")
    found = re.findall(r"^ {2}(?:-(\w), | {0,4})--([\w-]+)([= ]\S)?", text,
                       re.M)
    if len(found) < 30:
        faults.append(f"only {len(found)} options of qemu-nbd understood")
    for short, name, value in found:
        if name not in ours:
            faults.append(f"serve does not know qemu-nbd's --{name}")
        elif (ours[name][0] or "") != short:
            faults.append(f"qemu-nbd calls --{name} -{short} for short")
        elif bool(ours[name][1]) != bool(value.strip()) and name != "object":
            faults.append(f"qemu-nbd's --{name} and ours differ in whether "
                          "they take a value")


def check_overview():
    """rewind.1 and the completions know all commands."""
    with open(os.path.join(MAN, "rewind.1"), encoding="utf-8") as f:
        listed = re.findall(r"^\.It Cm (\w+)", f.read(), re.M)
    compare("rewind.1's list", listed, commands())
    text = output(REWIND, "completion", "bash")
    offered = re.findall(r"^ +operands='(.*?)'", text, re.M)
    compare("bash completion's list", offered[0].split(), commands())
    compare("completion of help", offered[-1].split(), commands())


check_overview()
check_command(None)
for command_name in commands():
    check_command(command_name)
check_qemu_nbd()
for fault in faults:
    print(fault)
sys.exit(1 if faults else 0)
