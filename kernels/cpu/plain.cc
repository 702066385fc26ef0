#define INTLM_NAMESPACE plain
#define INTLM_TABLE intlm_plain
#define INTLM_SUPPORTED true
#include "isa.inc"
