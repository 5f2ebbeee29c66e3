/* The part of os/log.h that the shims use, from Apple's documentation. */
#pragma once
@class OS_os_log;
typedef OS_os_log *os_log_t;
os_log_t os_log_create(const char *subsystem, const char *category);
