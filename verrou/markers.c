/* The start and stop markers of a region, as functions that Python can call (morphbits/engines/verrou/markers.py).
   Each is one client request of Verrou, from the header that Verrou installs; outside Valgrind each does nothing.
   Verrou's own binding has no call that sets the seed, and before 2.6 is not built with it, hence this file.
   scripts/with_verrou.sh compiles it: cc -shared -fPIC -I PREFIX/include markers.c */
#include <valgrind/verrou.h>

int morphbits_under_valgrind(void) { return RUNNING_ON_VALGRIND != 0; }
void morphbits_start(void) { VERROU_START_INSTRUMENTATION; }
void morphbits_stop(void) { VERROU_STOP_INSTRUMENTATION; }
void morphbits_seed(unsigned long seed) { VERROU_SET_SEED(seed); }
void morphbits_print_counters(void) { VERROU_DISPLAY_COUNTERS; }
