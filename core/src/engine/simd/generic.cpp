#define LAMINA_SIMD_NS simd_generic
#define LAMINA_SIMD_NAME "generic"
#define LAMINA_SIMD_WIDTH 0
#define LAMINA_SIMD_TABLE kGenericTable
#include "engine/simd/define_table.h"
