#define INTLM_NAMESPACE avxvnni
#define INTLM_TABLE intlm_avxvnni
#ifndef INTLM_SUPPORTED
#define INTLM_SUPPORTED __builtin_cpu_supports("avxvnni") && __builtin_cpu_supports("avx2")
#endif
#include "isa.inc"
