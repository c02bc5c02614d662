/* Linked into the agent of `make asan` only. The agent starts with an empty environment, so its
 * options are built in; leak checking would need ptrace, which the sandbox refuses. Its stderr goes
 * nowhere: what it finds shows itself as a sandbox that ended, and so as a failed test. */
const char *__asan_default_options(void);

const char *__asan_default_options(void) {
  return "detect_leaks=0:abort_on_error=1:handle_segv=0";
}
