/* The part of os/signpost.h that the shims use, for a test double on Linux. */
#ifndef ANE_SIM_OS_SIGNPOST_H
#define ANE_SIM_OS_SIGNPOST_H
#include <os/log.h>
#include <stdint.h>
typedef uint64_t os_signpost_id_t;
os_signpost_id_t os_signpost_id_generate(os_log_t log);
void ane_sim_signpost(os_log_t log, os_signpost_id_t interval, const char *name, int begins);
#define os_signpost_interval_begin(log, interval, name) ane_sim_signpost(log, interval, "" name, 1)
#define os_signpost_interval_end(log, interval, name) ane_sim_signpost(log, interval, "" name, 0)
#endif
