#define LAMINA_SIMD_NS simd_avx2
#define LAMINA_SIMD_NAME "avx2"
#define LAMINA_SIMD_WIDTH 256
#define LAMINA_SIMD_TABLE kAvx2Table
#include "engine/simd/define_table.h"
