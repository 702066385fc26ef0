#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define INTLM_SUPPORTED (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0
#else
#define INTLM_SUPPORTED true
#endif
#define INTLM_NAMESPACE neon
#define INTLM_TABLE intlm_neon
#include "isa.inc"
