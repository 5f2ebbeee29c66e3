/* GNUstep's headers want this name under -fblocks; nothing here uses blocks. */
#ifndef ANE_SIM_BLOCKS_RUNTIME_H
#define ANE_SIM_BLOCKS_RUNTIME_H
void *_Block_copy(const void *);
void _Block_release(const void *);
#endif
