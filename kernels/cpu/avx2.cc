#define INTLM_NAMESPACE avx2
#define INTLM_TABLE intlm_avx2
#define INTLM_SUPPORTED __builtin_cpu_supports("avx2")
#include "isa.inc"
