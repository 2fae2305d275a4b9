#define LAMINA_SIMD_NS simd_avx512
#define LAMINA_SIMD_NAME "avx512"
#define LAMINA_SIMD_WIDTH 512
#define LAMINA_SIMD_TABLE kAvx512Table
#include "engine/simd/define_table.h"
