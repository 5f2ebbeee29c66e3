/* The part of os/log.h that the shims use, for a test double on Linux. */
#ifndef ANE_SIM_OS_LOG_H
#define ANE_SIM_OS_LOG_H
typedef struct ane_sim_log *os_log_t;
os_log_t os_log_create(const char *subsystem, const char *category);
#endif
