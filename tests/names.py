"""Names that files, folders and settings may have, and that some format or library would take for something else."""

from __future__ import annotations

NAMES = [
    "a\\b", "a\\\\b", "a\\n", "C:\\x\\y", "a\xa0b", "\xa0", "it's", 'say "x"', "'quoted'", '"quoted"', "a'b\"c", "a\nb",
    "a\n\n  b\n", "a\tb", "\ta", " a", "a ", "  ", "a  b", "#", "#a", "a #b", "a # b", "a: b", "a:", ": a", "a:b", "~",
    "~/x", "1e3", "1.5", ".5", "1_000", "0x10", "0o17", "012", "+1", "-1", ".inf", ".nan", "null", "Null", "true", "False",
    "yes", "off", "2001-01-01", "1:30", "-", "- a", "--- a", "...", "?", "? a", "[a]", "[a", "{a: 1}", "{", "a,b", "!tag",
    "!!int 3", "&a", "*a", "%a", "@a", "`a`", "|", ">", "|a", "=", "a=b", "<<", "$HOME", "${x}", "$a$", "*", "é", "日本語",
    "😀", "\u202eabc", "a\u2028b", "\x85", "a\x85b", "\x1b[31m", "\x7f", "\ufeffa", "[/red]", "[red]x", ":smile:",
    "a\udcffb", "x" * 200, "x y " * 40 + "x", "\r", "a\r\nb"]
