/* The part of os/signpost.h that the shims use, from Apple's documentation. The name of an interval
 * must be a literal there too. */
#pragma once
#include <os/log.h>
#include <stdint.h>
typedef uint64_t os_signpost_id_t;
os_signpost_id_t os_signpost_id_generate(os_log_t log);
void _os_signpost_emit_with_name_impl(void *dso, os_log_t log, uint8_t type, os_signpost_id_t interval,
                                      const char *name, const char *format, uint8_t *values, uint32_t size);
#define os_signpost_interval_begin(log, interval, name) \
    _os_signpost_emit_with_name_impl((void *)0, log, 1, interval, "" name, "", (uint8_t *)0, 0)
#define os_signpost_interval_end(log, interval, name) \
    _os_signpost_emit_with_name_impl((void *)0, log, 2, interval, "" name, "", (uint8_t *)0, 0)
