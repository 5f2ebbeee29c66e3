/* The part of os/signpost.h that the shims use, from Apple's documentation. The name of an interval
 * must be a literal there too. */
#pragma once
#include <os/log.h>
#include <stdint.h>
typedef uint64_t os_signpost_id_t;
os_signpost_id_t os_signpost_id_generate(os_log_t log);
void ane_signpost_checked(os_log_t log, os_signpost_id_t interval, const char *name);
#define os_signpost_interval_begin(log, interval, name) ane_signpost_checked(log, interval, "" name)
#define os_signpost_interval_end(log, interval, name) ane_signpost_checked(log, interval, "" name)
