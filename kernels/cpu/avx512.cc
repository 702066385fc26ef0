#define INTLM_NAMESPACE avx512
#define INTLM_TABLE intlm_avx512
#define INTLM_SUPPORTED __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi")
#include "isa.inc"
