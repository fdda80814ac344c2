"""`python -m pe_core`, the command `pe` under its former name; use `python -m pe_cli`."""

import runpy

runpy.run_module("pe_cli", run_name="__main__", alter_sys=True)
